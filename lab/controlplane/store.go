package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/deploy"
	"github.com/nodeproxy/nodeproxy/lab"
)

// object names one object of the API.
type object struct{ kind, namespace, name string }

// resources tells where objects of a kind are, and whether they have a status
// of their own to be written.
var resources = map[string]struct {
	path   string
	status bool
}{
	"v1 Service":                               {"/api/v1/namespaces/%s/services/%s", true},
	"v1 Node":                                  {"/api/v1/nodes/%[2]s", true},
	"v1 Namespace":                             {"/api/v1/namespaces/%[2]s", false},
	"v1 ConfigMap":                             {"/api/v1/namespaces/%s/configmaps/%s", false},
	"apps/v1 DaemonSet":                        {"/apis/apps/v1/namespaces/%s/daemonsets/%s", false},
	"v1 ServiceAccount":                        {"/api/v1/namespaces/%s/serviceaccounts/%s", false},
	"discovery.k8s.io/v1 EndpointSlice":        {"/apis/discovery.k8s.io/v1/namespaces/%s/endpointslices/%s", false},
	"networking.k8s.io/v1 ServiceCIDR":         {"/apis/networking.k8s.io/v1/servicecidrs/%[2]s", false},
	"rbac.authorization.k8s.io/v1 ClusterRole": {"/apis/rbac.authorization.k8s.io/v1/clusterroles/%[2]s", false},
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": {"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/%[2]s", false},
}

func (o object) path() string { return fmt.Sprintf(resources[o.kind].path, o.namespace, o.name) }

// allocateLabRanges lets Services have the addresses that manifests give them.
func (s *Server) allocateLabRanges(ctx context.Context) error {
	cidr := networkingv1.ServiceCIDR{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		ObjectMeta: metav1.ObjectMeta{Name: "lab"},
	}
	for _, p := range lab.ServiceCIDRs {
		cidr.Spec.CIDRs = append(cidr.Spec.CIDRs, p.String())
	}
	_, err := s.put(ctx, cidr)
	return err
}

// Apply implements [lab.Store]: objects of that file that are not named any
// more are deleted.
func (s *Server) Apply(file string, objects ...any) error {
	ctx := context.Background()
	var now []object
	for _, o := range objects {
		key, err := s.put(ctx, o)
		if err != nil {
			return err
		}
		now = append(now, key)
	}
	for _, before := range s.files[file] {
		if !slices.Contains(now, before) {
			if err := s.remove(ctx, before); err != nil {
				return err
			}
		}
	}
	s.files[file] = now
	return nil
}

// Delete implements [lab.Store].
func (s *Server) Delete(file string) error { return s.Apply(file) }

// applyDeploy applies the manifests of deploy/, whose ServiceAccount the agents
// have; the API server says what is wrong with the others.
func (s *Server) applyDeploy(ctx context.Context) error {
	return fs.WalkDir(deploy.Files, "manifests", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := deploy.Files.ReadFile(path)
		if err != nil {
			return err
		}
		if err := s.apply(ctx, data); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
}

// apply applies manifests as YAML.
func (s *Server) apply(ctx context.Context, manifests []byte) error {
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read manifests: %w", err)
		}
		data, err := yaml.YAMLToJSON(doc)
		if err != nil {
			return fmt.Errorf("read manifests: %w", err)
		}
		if string(data) == "null" {
			continue
		}
		if _, err := s.put(ctx, json.RawMessage(data)); err != nil {
			return err
		}
	}
}

// put applies one object on the server's side, its status too.
func (s *Server) put(ctx context.Context, in any) (object, error) {
	data, err := json.Marshal(in)
	if err != nil {
		return object{}, fmt.Errorf("encode object: %w", err)
	}
	var meta metav1.PartialObjectMetadata
	if err := json.Unmarshal(data, &meta); err != nil {
		return object{}, fmt.Errorf("read object: %w", err)
	}
	key := object{meta.APIVersion + " " + meta.Kind, meta.Namespace, meta.Name}
	resource, ok := resources[key.kind]
	if !ok {
		return key, fmt.Errorf("apply %s: this kind is not known to the lab", key.kind)
	}
	spec, err := without(data, "status")
	if err != nil {
		return key, fmt.Errorf("read object: %w", err)
	}
	if err := s.rest().Patch(types.ApplyPatchType).AbsPath(key.path()).
		Param("fieldManager", "lab").Param("force", "true").Body(spec).Do(ctx).Error(); err != nil {
		return key, fmt.Errorf("apply %s %s/%s: %w", key.kind, key.namespace, key.name, err)
	}
	if !resource.status {
		return key, nil
	}
	// Not an apply: that takes one address of each type in the status of a
	// Node, which a node with two families has two of.
	if err := s.rest().Patch(types.MergePatchType).AbsPath(key.path() + "/status").Body(data).Do(ctx).Error(); err != nil {
		return key, fmt.Errorf("write status of %s %s/%s: %w", key.kind, key.namespace, key.name, err)
	}
	return key, nil
}

// without leaves out a field of an object.
func without(data []byte, field string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	delete(fields, field)
	return json.Marshal(fields)
}

func (s *Server) remove(ctx context.Context, key object) error {
	err := s.rest().Delete().AbsPath(key.path()).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s/%s: %w", key.kind, key.namespace, key.name, err)
	}
	return nil
}

func (s *Server) rest() rest.Interface { return s.Client.CoreV1().RESTClient() }
