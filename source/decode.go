package source

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	strict "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/service"
)

// objects are what a file holds.
type objects struct {
	services []*service.Service
	slices   []*service.EndpointSlice
	nodes    []*service.Node
	ignored  map[string]int // objects of other kinds, by kind
	document int            // the one that is read, counted from 1
	warnings []string
}

// notes are what is not used, in words.
func (o *objects) notes() []string {
	out := slices.Clone(o.warnings)
	for _, kind := range slices.Sorted(maps.Keys(o.ignored)) {
		_, name, _ := strings.Cut(kind, " ")
		out = append(out, fmt.Sprintf("%s (%d)", name, o.ignored[kind]))
	}
	return out
}

// decode reads manifests: YAML with any number of documents, or JSON, holding
// objects or lists of them. An error names the document, counted from 1, and
// the field, of the first that cannot be read; the others are returned with it.
func decode(data []byte) (*objects, error) {
	out := &objects{ignored: map[string]int{}}
	next, plain := documents(data)
	var errs []error
	for n := 1; ; n++ {
		out.document = n
		doc, err := next()
		if errors.Is(err, io.EOF) {
			return out, firstOf(errs)
		}
		if err != nil { // where the next one begins is not known
			return out, firstOf(append(errs, fmt.Errorf("document %d: %w", n, err)))
		}
		if !plain { // reading JSON as YAML takes many times as long
			doc, err = out.toJSON(doc)
		}
		if s := string(bytes.TrimSpace(doc)); err == nil && (s == "null" || s == "") {
			continue // only comments
		}
		if err == nil {
			err = out.add(doc)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
		}
	}
}

// toJSON reads a document of YAML. A key that is there twice, of which the last counts, is
// warned of.
func (o *objects) toJSON(doc []byte) ([]byte, error) {
	text, err := yaml.YAMLToJSONStrict(doc)
	if err == nil {
		return text, nil
	}
	text, lenient := yaml.YAMLToJSON(doc)
	if lenient == nil {
		what := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: yaml: unmarshal errors:")
		o.warnings = append(o.warnings, fmt.Sprintf("document %d: %s; the last counts", o.document, strings.Join(strings.Fields(what), " ")))
	}
	return text, lenient
}

// firstOf returns the first error, and how many more there are; nil for none.
func firstOf(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return DocumentErrors(errs)
}

// DocumentErrors are what is wrong with each document of a manifest that cannot be
// read, or each item of a list in it.
type DocumentErrors []error

// Error names the first, and how many more there are.
func (e DocumentErrors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	return fmt.Sprintf("%v (and %d more)", e[0], len(e)-1)
}

// Unwrap gives each of them.
func (e DocumentErrors) Unwrap() []error { return e }

// documents returns a function that hands out one document after the other, and
// whether they are JSON. Text that begins like JSON may be YAML in its flow
// style all the same.
func documents(data []byte) (next func() ([]byte, error), plain bool) {
	if bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) && isJSON(data) {
		dec := json.NewDecoder(bytes.NewReader(data))
		return func() ([]byte, error) {
			var raw json.RawMessage
			err := dec.Decode(&raw)
			return raw, err
		}, true
	}
	return utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))).Read, false
}

// isJSON reports whether data is JSON values and nothing else.
func isJSON(data []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}

// add takes in one object, given as JSON, or each of a list.
func (o *objects) add(doc []byte) error {
	var meta struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	if err := unmarshal(doc, &meta); err != nil {
		return err
	}
	kind := meta.APIVersion + " " + meta.Kind
	what := meta.Kind + " " + meta.Namespace + "/" + meta.Name
	switch kind {
	case "v1 List", "v1 ServiceList", "v1 NodeList", "discovery.k8s.io/v1 EndpointSliceList":
		return o.addList(doc, meta.TypeMeta)
	case "v1 Service":
		return o.addService(doc, what)
	case "discovery.k8s.io/v1 EndpointSlice":
		var in discovery.EndpointSlice
		unknown, err := unmarshalStrict(doc, &in)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if in.Name == "" {
			return nameless(what)
		}
		in.Namespace = namespaceOf(in.Namespace)
		slice, w := convertEndpointSlice(&in)
		if in.Labels[discovery.LabelServiceName] == "" {
			w.add("metadata.labels", "%s is missing: it names the Service of these endpoints, and without it none uses them", discovery.LabelServiceName)
		}
		o.warn(what, append(unknown, w...))
		if slice != nil {
			o.slices = append(o.slices, slice)
		}
		return nil
	case "v1 Node":
		var in v1.Node
		unknown, err := unmarshalStrict(doc, &in)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if in.Name == "" {
			return nameless(what)
		}
		node, w := convertNode(&in)
		o.warn(what, append(unknown, w...))
		o.nodes = append(o.nodes, node)
		return nil
	}
	if meta.Kind == "" || meta.APIVersion == "" {
		return errors.New("apiVersion and kind are missing: this is no Kubernetes manifest")
	}
	o.ignored[kind]++
	return nil
}

func (o *objects) addService(doc []byte, what string) error {
	var in v1.Service
	unknown, err := unmarshalStrict(doc, &in)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if in.Name == "" {
		return nameless(what)
	}
	in.Namespace = namespaceOf(in.Namespace)
	if in.Spec.ClusterIP == "" && len(in.Spec.ClusterIPs) == 0 && in.Spec.Type != v1.ServiceTypeExternalName {
		return fmt.Errorf("%s: spec.clusterIP is missing: no API server is here to choose one; "+
			"give it an address, or None for a headless Service", what)
	}
	svc, w := convertService(&in)
	w.unallocated(&in)
	o.warn(what, append(unknown, w...))
	o.services = append(o.services, svc)
	return nil
}

// addList adds the items of a list. Those of a typed list may leave out their
// own kind, as the API server's answers do.
func (o *objects) addList(doc []byte, list metav1.TypeMeta) error {
	var in struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := unmarshal(doc, &in); err != nil {
		return err
	}
	var errs []error
	for i, item := range in.Items {
		if kind, typed := itemKind[list.Kind]; typed {
			var fields map[string]json.RawMessage
			if err := unmarshal(item, &fields); err != nil {
				errs = append(errs, fmt.Errorf("items[%d]: %w", i, err))
				continue
			}
			if _, ok := fields["kind"]; !ok {
				fields["kind"], _ = json.Marshal(kind)
				fields["apiVersion"], _ = json.Marshal(list.APIVersion)
				item, _ = json.Marshal(fields)
			}
		}
		if err := o.add(item); err != nil {
			errs = append(errs, fmt.Errorf("items[%d]: %w", i, err))
		}
	}
	return firstOf(errs)
}

var itemKind = map[string]string{"ServiceList": "Service", "NodeList": "Node", "EndpointSliceList": "EndpointSlice"}

func (o *objects) warn(what string, w warnings) {
	for _, text := range w {
		o.warnings = append(o.warnings, fmt.Sprintf("document %d: %s: %s", o.document, what, text))
	}
}

// unmarshal names the field that has the wrong type.
func unmarshal(doc []byte, into any) error {
	err := json.Unmarshal(doc, into)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return fmt.Errorf("field %s: got %s, want %s", wrong.Field, wrong.Value, wrong.Type)
	}
	return err
}

// unmarshalStrict reads an object as the API server does, for which the case of a field's
// name counts. What it does not know, or finds twice, is in the warnings.
func unmarshalStrict(doc []byte, into any) (w warnings, err error) {
	found, err := strict.UnmarshalStrict(doc, into)
	if err != nil {
		if named := unmarshal(doc, into); named != nil { // it names the field
			return nil, named
		}
		return nil, err
	}
	for _, e := range found {
		var at strict.FieldError
		if !errors.As(e, &at) {
			w = append(w, e.Error())
			continue
		}
		what := "there is no such field, and it is not used"
		if strings.HasPrefix(e.Error(), "duplicate") {
			what = "it is there twice, and the last counts"
		}
		w.add(at.FieldPath(), "%s", what)
	}
	return w, nil
}

func namespaceOf(s string) string {
	if s == "" {
		return metav1.NamespaceDefault
	}
	return s
}

func nameless(what string) error { return fmt.Errorf("%s: metadata.name is missing", what) }

// Decode reads manifests as [File] does and returns them as complete changes,
// with what it passed over in words.
func Decode(data []byte) (service.Changes, []string, error) {
	c, notes, err := DecodeAll(data)
	if err != nil {
		return service.Changes{}, nil, err
	}
	return c, notes, nil
}

// DecodeAll is Decode, and returns what can be read beside the [DocumentErrors] of
// what cannot.
func DecodeAll(data []byte) (service.Changes, []string, error) {
	o, err := decode(data)
	return service.Changes{Complete: true, Services: o.services, EndpointSlices: o.slices, Nodes: o.nodes}, o.warnings, err
}
