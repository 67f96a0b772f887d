package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-proxy/config/v1alpha1"
	strict "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// decodeKubeProxyConfig reads a KubeProxyConfiguration as kube-proxy does: strictly at
// first, and where that finds unknown or repeated fields, leniently, with what they are
// in words.
func decodeKubeProxyConfig(data []byte) (in v1alpha1.KubeProxyConfiguration, notes []string, err error) {
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		var lenient error
		if text, lenient = yaml.YAMLToJSON(data); lenient != nil {
			return in, nil, fmt.Errorf("it is no YAML: %s", oneLine(lenient))
		}
		notes = append(notes, "repeated fields, of which the last counts: "+oneLine(err))
	}
	found, err := strict.UnmarshalStrict(text, &in)
	if err != nil {
		if field := wrongField(text, ""); field != nil {
			return in, nil, field
		}
		return in, nil, errors.New("it is no object of fields: use a KubeProxyConfiguration")
	}
	var unknown []string
	for _, e := range found {
		name := e.Error()
		var at strict.FieldError
		if errors.As(e, &at) {
			name = at.FieldPath()
		}
		unknown = append(unknown, name)
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		notes = append(notes, fmt.Sprintf("%s (kubeproxy.config.k8s.io/v1alpha1 has no such fields)", strings.Join(slices.Compact(unknown), ", ")))
	}
	return in, notes, nil
}

// oneLine drops what a library says before its own message, and the ends of lines.
func oneLine(err error) string {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = strings.Replace(text, "unmarshal errors:", "", 1)
	return strings.Join(strings.Fields(strings.TrimPrefix(text, "yaml: ")), " ")
}

// wrongField finds the field whose value cannot be read, since decoders do not name it
// where the type reads itself, as durations do. It returns nil where text is no object.
func wrongField(text []byte, path string) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil {
		if path == "" {
			return nil
		}
		return fmt.Errorf("%s %s: %s", path, text, useOf(path))
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		below := strings.TrimPrefix(path+"."+name, ".")
		alone, value := fields[name], ""
		for i, parts := 0, strings.Split(below, "."); i < len(parts); i++ {
			key, _ := json.Marshal(parts[len(parts)-1-i]) // a text: it cannot fail
			value = string(alone)
			alone = json.RawMessage(fmt.Sprintf("{%s:%s}", key, value))
		}
		var in v1alpha1.KubeProxyConfiguration
		if _, err := strict.UnmarshalStrict(alone, &in); err != nil {
			return wrongField(fields[name], below)
		}
	}
	return fmt.Errorf("%s %s: %s", path, text, useOf(path))
}

// useOf tells what to use for the field of a path.
func useOf(path string) string {
	if wanted := wantedOf(path); wanted != "" {
		return "use " + wanted
	}
	return "use fields and their values"
}

// wantedOf says what the field of a path takes, by its type.
func wantedOf(path string) string {
	at := reflect.TypeFor[v1alpha1.KubeProxyConfiguration]()
	for name := range strings.SplitSeq(path, ".") {
		for at.Kind() == reflect.Pointer {
			at = at.Elem()
		}
		if at.Kind() != reflect.Struct {
			break
		}
		for _, f := range reflect.VisibleFields(at) {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
				at = f.Type
				break
			}
		}
	}
	for at.Kind() == reflect.Pointer {
		at = at.Elem()
	}
	if at == reflect.TypeFor[metav1.Duration]() {
		return "a duration such as 30s or 1m"
	}
	return map[reflect.Kind]string{reflect.Bool: "true or false", reflect.Int32: "a whole number", reflect.Uint32: "a whole number",
		reflect.Float32: "a number", reflect.String: "a text", reflect.Slice: "a list"}[at.Kind()]
}
