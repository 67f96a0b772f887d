# Two commands to know: make demo, make test. Both install what they need and
# must run as root: they make network namespaces and program the kernel.

GO        ?= go
BIN       := bin/nodeproxy
# From the last tag; before the first one, a number below all.
VERSION   ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null | sed 's/^v//' | grep . || echo 0.0.0-$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown))
COMMIT    ?= $(shell git rev-parse HEAD 2>/dev/null)
STAMP     := -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# Of released programs: the same bytes wherever they are built, and without lab and bench.
RELEASE   := -trimpath -buildvcs=false -tags agent -ldflags '-s -w -buildid= $(STAMP)'
CLANG_VER := 14

# Debian packages by purpose; only what is missing is installed.
RUN_PACKAGES  := iptables iproute2
LAB_PACKAGES  := $(RUN_PACKAGES) iperf3 curl
TEST_PACKAGES := $(LAB_PACKAGES) chromium conntrack git nftables systemd
BENCH_PACKAGES := $(LAB_PACKAGES) iperf nftables
LINT_PACKAGES := clang-format-$(CLANG_VER)
VM_PACKAGES   := $(TEST_PACKAGES) qemu-system-x86 busybox-static kmod
GEN_PACKAGES  := clang-$(CLANG_VER) llvm-$(CLANG_VER) libbpf-dev libc6-dev linux-libc-dev git

MODE   ?= iptables
SOURCE ?= file
FUZZ   ?= 10s
GOTEST := $(GO) test -timeout 40m
# Dozens of labs with real packets share two cores, and a machine has bad
# moments: what fails is run again by itself, twice at most. What needed that is
# printed; a test that fails for a reason fails again.
RERUN  := $(GO) tool gotestsum --format pkgname-and-test-fails --rerun-fails=2 --rerun-fails-run-root-test --rerun-fails-max-failures 200

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

.PHONY: build
build: ## Build bin/nodeproxy
	$(GO) build -ldflags '$(STAMP)' -o $(BIN) ./cmd/nodeproxy

.PHONY: man
man: build ## Write man pages and completions for shells into bin/man and bin/completion
	./$(BIN) man bin/man
	@mkdir -p bin/completion
	for s in bash zsh fish; do ./$(BIN) completion $$s > bin/completion/nodeproxy.$$s || exit 1; done

.PHONY: demo
demo: root deps-lab build $(if $(filter kubernetes,$(SOURCE)),kube) ## Show on this machine how Services work (MODE=iptables, SOURCE=file)
	./$(BIN) lab demo --mode $(MODE) --source $(SOURCE) --kube-bin $(KUBE_BIN)

# etcd, kube-apiserver, kubectl, kube-proxy and kubeadm for the tests: tools of a Go
# module of their own. Some eight minutes on two cores at first, then cached.
KUBE_BIN := $(CURDIR)/bin/kube

.PHONY: kube
kube: ## Build etcd, kube-apiserver, kubectl, kube-proxy and kubeadm into bin/kube, for tests
	@mkdir -p $(KUBE_BIN)
	cd netns-tests/kube && version=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes) && for p in go.etcd.io/etcd/server/v3=etcd k8s.io/kubernetes/cmd/kube-apiserver=kube-apiserver \
		k8s.io/kubernetes/cmd/kubectl=kubectl k8s.io/kubernetes/cmd/kube-proxy=kube-proxy k8s.io/kubernetes/cmd/kubeadm=kubeadm; do \
		CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version" -o $(KUBE_BIN)/$${p#*=} $${p%=*} || exit 1; \
	done

.PHONY: helm
helm: ## Build helm into bin/kube, for tests
	@mkdir -p $(KUBE_BIN)
	cd netns-tests/helm && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(KUBE_BIN)/helm helm.sh/helm/v4/cmd/helm

.PHONY: nfpm
nfpm: ## Build nfpm into bin/kube, which makes the Debian package
	@mkdir -p $(KUBE_BIN)
	cd netns-tests/nfpm && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(KUBE_BIN)/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm

.PHONY: promtool
promtool: ## Take promtool out of Debian's package prometheus, which is not installed, for tests
	@mkdir -p $(KUBE_BIN)
	@test -x $(KUBE_BIN)/promtool || { cd $(KUBE_BIN) && apt-get update -qq && apt-get download -qq prometheus && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool && rm -f prometheus_*.deb; }

ARCH    ?= $(shell $(GO) env GOARCH)

.PHONY: release
release: ## Build dist/ARCH/nodeproxy as it is released, with its SBOM and the licences in it (VERSION, ARCH)
	@mkdir -p dist/$(ARCH)
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build $(RELEASE) -o dist/$(ARCH)/nodeproxy ./cmd/nodeproxy
	$(GO) run ./internal/notices sbom dist/$(ARCH)/nodeproxy $(VERSION) > dist/$(ARCH)/nodeproxy.cdx.json
	$(GO) run ./internal/notices texts dist/$(ARCH)/nodeproxy > dist/$(ARCH)/THIRD_PARTY_LICENSES

.PHONY: reproducible
reproducible: ## Build the release twice from two directories, with nothing cached, and compare
	@dir=$$(mktemp -d) && trap 'chmod -R u+w $$dir; rm -rf $$dir' EXIT && for n in 1 22; do \
		mkdir -p $$dir/$$n && git ls-files -z | tar --null -T - -c | tar -x -C $$dir/$$n && \
		$(MAKE) -C $$dir/$$n release GOCACHE=$$dir/cache$$n VERSION=$(VERSION) COMMIT=$(COMMIT) && \
		(cd $$dir/$$n/dist/$(ARCH) && sha256sum *) > $$dir/sums$$n || exit 1; done && cat $$dir/sums1 && diff $$dir/sums1 $$dir/sums22 && echo "the same bytes twice"

.PHONY: deb
deb: nfpm man ## Build dist/nodeproxy_VERSION_ARCH.deb (VERSION, ARCH)
	mkdir -p dist/$(ARCH)
	$(MAKE) release
	VERSION=$(VERSION) ARCH=$(ARCH) $(KUBE_BIN)/nfpm package -f deploy/nfpm.yaml -p deb -t dist/

.PHONY: test
test: root deps-test build kube helm nfpm promtool test-race test-all test-fuzz ## Run every test

# One package at a time: some measure times, on two cores.
.PHONY: test-all
test-all:
	NODEPROXY_TEST_ROOT=1 NODEPROXY_BINARY=$(CURDIR)/$(BIN) NODEPROXY_KUBE_BIN=$(KUBE_BIN) $(RERUN) --packages ./... -- -timeout 55m -count=1 -p 1

# The race detector on what needs no root.
.PHONY: test-race
test-race:
	$(GOTEST) -race -short ./service/... ./source/... ./dataplane ./dataplane/iptables/walk/... ./lab/manifest/...

.PHONY: test-fuzz
test-fuzz: ## Run the fuzz targets for a short time each (FUZZ=10s)
	$(GOTEST) -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZ) ./source

# Stock Debian kernels, in QEMU without KVM: what only they can show.
VM_KERNELS ?= linux-image-cloud-amd64 linux-image-6.12-cloud-amd64
# Packets through the programs one by one, and the table of scenarios in labs.
VM_TESTS   ?= ./dataplane/ebpf ./dataplane/loopback ./netns-tests=^TestScenarios$$/ebpf ./netns-tests=^TestNeighbours$$/^ebpf-packets-only$$/^ipvlan$$
# Of these, what the gate runs: every program, packets through them, and what
# only stock kernels have.
VM_GATE    := './dataplane/ebpf=TestVerifier|TestPackets|TestSocketPath|TestP1P2P3|TestP20|TestLossy|TestP35|TestDirectBeside|TestForged|TestNodeReaches|TestFlushed|TestAutoFollows' ./dataplane/loopback

.PHONY: test-vm
test-vm: root deps-vm ## Run the eBPF tests on stock Debian kernels in QEMU (VM_KERNELS, VM_TESTS)
	$(GO) run ./netns-tests/vm -timeout 40m $(addprefix -kernel ,$(VM_KERNELS)) $(foreach t,$(VM_TESTS),-test '$(t)')

.PHONY: test-vm-gate
test-vm-gate: root deps-vm ## Run on Linux 6.1 what the gate runs there
	$(GO) run ./netns-tests/vm -kernel linux-image-cloud-amd64 $(addprefix -test ,$(VM_GATE))

# With KUBE_PROXY=1, kube-proxy is measured on the same objects.
BENCH      ?=
BENCH_KUBE := $(if $(KUBE_PROXY),--kube-proxy $(KUBE_BIN)/kube-proxy --kube-bin $(KUBE_BIN))

.PHONY: bench
bench: root deps-bench build $(if $(KUBE_PROXY),kube) ## Compare the modes' speed and write a report (BENCH=--quick, KUBE_PROXY=1)
	./$(BIN) bench $(BENCH_KUBE) $(BENCH)

.PHONY: bench-check
bench-check: root deps-bench build ## Fail if a mode is slower than bench/floors.yaml allows
	./$(BIN) bench --check

.PHONY: bench-sync
bench-sync: root deps-lab ## Measure how fast rules are written and changed
	$(GOTEST) -run '^$$' -bench 'FullSync|Change|Connections' -benchtime 5x ./dataplane/iptables

.PHONY: lint
lint: deps-lint ## Check formatting and run go vet, staticcheck and clang-format
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt wants to change: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags agent ./cmd/nodeproxy
	$(GO) vet -tags stock ./dataplane/ebpf ./netns-tests
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	@files=$$(git ls-files 'bpf/*.c' 'bpf/*.h'); test -z "$$files" || clang-format-$(CLANG_VER) --dry-run --Werror $$files

.PHONY: generate
generate: deps-gen ## Compile bpf/ and write the generated files
	$(GO) generate ./...

# Every header includes what it uses.
.PHONY: headers-check
headers-check: deps-gen ## Fail if a header of bpf/ does not compile alone
	@for f in bpf/*.h; do clang-$(CLANG_VER) -target bpfel -O2 -mcpu=v3 -Wall -Wextra -Wno-unused-function -Werror -I/usr/include/$$(uname -m)-linux-gnu \
	  -fsyntax-only -x c $$f || exit 1; done

.PHONY: generate-check
generate-check: generate ## Fail if the generated files are not those that are committed
	git diff --exit-code -- '*_bpfel.go' '*_bpfel.o'

.PHONY: vagrant-check
vagrant-check: ## Validate the Vagrantfile with Debian's vagrant
	$(call install,vagrant)
	vagrant validate --ignore-provider

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist

.PHONY: root
root:
	@test "$$(id -u)" = 0 || { echo "This programs the kernel and makes network namespaces: run it as root (sudo make ...)."; exit 1; }

# install names the missing packages and installs them without asking.
define install
	@missing=; for p in $(1); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing Debian packages:$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
endef

.PHONY: deps-lab deps-test deps-bench deps-vm deps-lint deps-gen
deps-lab: ; $(call install,$(LAB_PACKAGES))
deps-test: ; $(call install,$(TEST_PACKAGES))
deps-bench: ; $(call install,$(BENCH_PACKAGES))
deps-vm: ; $(call install,$(VM_PACKAGES))
deps-lint: ; $(call install,$(LINT_PACKAGES))
deps-gen: ; $(call install,$(GEN_PACKAGES))
