package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// Encode returns the objects as YAML documents, without what a person who
// edits them has no use for: empty status, empty structs, null times.
func Encode(objects ...any) ([]byte, error) {
	var buf bytes.Buffer
	for i, object := range objects {
		doc, err := encode(object)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", describe(object), err)
		}
		if i > 0 {
			buf.WriteString("---\n")
		}
		buf.Write(doc)
	}
	return buf.Bytes(), nil
}

// EncodeJSON renders objects as JSON, one to a line: larger than YAML, and many
// times as fast to read.
func EncodeJSON(objects ...any) ([]byte, error) {
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	for _, object := range objects {
		if err := encoder.Encode(object); err != nil {
			return nil, fmt.Errorf("encode %s: %w", describe(object), err)
		}
	}
	return buf.Bytes(), nil
}

func encode(object any) ([]byte, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // float64 would write large numbers with an exponent
	if err := decoder.Decode(&fields); err != nil {
		return nil, err
	}
	prune(fields)
	return yaml.Marshal(fields)
}

// prune removes null values and maps in which nothing is set, as the API's
// types leave them behind (a Node's nodeInfo). It reports whether anything is
// left. A false is something: conditions tell it from absent.
func prune(fields map[string]any) bool {
	set := false
	for key, value := range fields {
		switch v := value.(type) {
		case nil:
			delete(fields, key)
		case map[string]any:
			if prune(v) {
				set = true
			} else {
				delete(fields, key)
			}
		case string:
			set = set || v != ""
		case json.Number:
			set = set || v != "0"
		default:
			set = true
		}
	}
	return set
}

// WriteFile encodes the objects into the file at path, which is replaced at
// once: a reader sees the old content or the new. The temporary file beside
// it begins with a dot and does not end in .yaml.
func WriteFile(path string, objects ...any) error {
	data, err := Encode(objects...)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return WriteAtomic(path, data)
}

// WriteAtomic writes data to the file at path, mode 0644, as [WriteFile] does.
func WriteAtomic(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
			_ = os.Remove(tmp.Name())
		}
	}()
	_, werr := tmp.Write(data)
	if err := errors.Join(werr, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
