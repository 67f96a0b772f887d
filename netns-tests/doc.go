// Package netnstests holds the tests that need the whole program: real agents
// in a lab of network namespaces, real sockets, every mode of the dataplane.
//
// TestScenarios runs one table of scenarios, who dials what, who must answer
// and which source they must see, in every column: a mode with its arguments.
// The other tests break things: agents killed under traffic, rules flushed by
// others, manifests half written, endpoints that go away under a flow.
//
// A new mode is one more entry of columns. All tests need root and fail without.
package netnstests
