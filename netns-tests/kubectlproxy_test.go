package netnstests

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeproxy/nodeproxy/lab"
)

// webPort is where a Pod serves pages for who compares proxies. It is the Pods'
// port of web pages in [echo], on an address of its own.
const webPort = 8123

// webPages tells what it was asked, redirects, fails, links and upgrades.
func webPages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/asked/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what is missing differs
		w.Header().Set("X-Answer", "yes")
		fmt.Fprintf(w, "%s %s %q %q\n", r.Method, r.URL.EscapedPath(), r.URL.Query(), body)
		for _, name := range []string{"X-Test", "Content-Type", "Authorization", "Cookie"} {
			fmt.Fprintf(w, "%s: %q\n", name, r.Header.Values(name))
		}
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/asked/there?x=1", http.StatusFound)
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://example.com/", http.StatusMovedPermanently)
	})
	mux.HandleFunc("/fails", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<html><body><a href="/asked/1">one</a> <a href="two">two</a> <img src="http://example.com/3"></body></html>`)
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("0123456789", 200_000)) })
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "test" {
			http.Error(w, "upgrade", http.StatusUpgradeRequired)
			return
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
		buf.Flush()
		line, _ := buf.ReadString('\n')
		fmt.Fprintf(buf, "you said %s", line)
		buf.Flush()
	})
	return mux
}

// webAnswer is what of an answer has to be the same.
type webAnswer struct {
	Status                 int
	Type, Location, Answer string
	Body                   string
}

// likeKubectl asks for the same by kubectl proxy, which goes through the API
// server, and by nodeproxy proxy, which goes from the node. There is no kubelet
// here, which kubectl port-forward would need.
func (c *cluster) likeKubectl(t *testing.T) {
	apply(t, c.Lab, find("empty"))
	var l net.Listener
	must(t, c.Do("pod-a1", func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", webPort))
		return err
	}))
	web := &http.Server{Handler: webPages()}
	defer web.Close()
	go web.Serve(l)
	c.makePod(t)
	must(t, c.Apply("pages.yaml", webService()...))
	defer func() { must(t, c.Delete("pages.yaml")) }()

	kubectl := c.Command(t.Context(), "control-plane", filepath.Join(kubeBinaries(t), "kubectl"), "--kubeconfig", c.api.AdminKubeconfig(), "proxy", "--port", "0")
	var out safeBuffer
	kubectl.Stdout = &out
	must(t, kubectl.Start())
	defer func() { kubectl.Process.Signal(syscall.SIGTERM); kubectl.Wait() }()
	var theirs string
	eventually(t, patience, func() error {
		m := regexp.MustCompile(`Starting to serve on (\S+)`).FindStringSubmatch(out.String())
		if m == nil {
			return fmt.Errorf("kubectl proxy prints %q", out.String())
		}
		theirs = m[1]
		return nil
	})
	ours := "127.0.0.1:" + background(t, c.Lab, `serve on 127\.0\.0\.1:(\d+)`, "proxy", "--port", "0")[1]
	const base = "/api/v1/namespaces/default/"
	eventually(t, patience, func() error { // the agent takes the Service in
		if a := c.askWeb(t, "node-a", ours, "GET", base+"services/pages:http/proxy/asked/", nil); a.Status != http.StatusOK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	for _, q := range []struct{ method, path, body string }{
		{"GET", "services/pages:http/proxy/asked/", ""}, {"GET", "services/pages:80/proxy/asked/a/b?q=1&q=2", ""}, {"GET", "services/http:pages:http/proxy/asked/", ""},
		{"POST", "services/pages:http/proxy/asked/x", "some text"}, {"DELETE", "services/pages:http/proxy/asked/%20y", ""}, {"GET", "services/pages:http/proxy/moved", ""},
		{"GET", "services/pages:http/proxy/away", ""}, {"GET", "services/pages:http/proxy/fails", ""}, {"GET", "services/pages:http/proxy/page", ""},
		{"GET", "services/pages:http/proxy/large", ""}, {"GET", "services/pages:http/proxy/missing", ""}, {"GET", "services/pages:other/proxy/", ""},
		{"GET", "services/nothing:80/proxy/", ""}, {"GET", "services/empty:http/proxy/", ""}, {"GET", "services/pages:http/proxy/upgrade", ""},
		{"GET", fmt.Sprintf("pods/pages-1:%d/proxy/asked/?x", webPort), ""}, {"GET", fmt.Sprintf("pods/nobody:%d/proxy/", webPort), ""},
	} {
		got, want := c.askWeb(t, "node-a", ours, q.method, base+q.path, strings.NewReader(q.body)), c.askWeb(t, "control-plane", theirs, q.method, base+q.path, strings.NewReader(q.body))
		if want.Status >= 400 && want.Status != http.StatusTeapot && want.Status != http.StatusUpgradeRequired && strings.Contains(want.Body, `"kind":"Status"`) {
			got.Body, want.Body, got.Type, want.Type = "", "", "", "" // words of their own
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %s (-kubectl +nodeproxy):\n%.1500s", q.method, q.path, diff)
		}
	}
	for place, at := range map[string]string{"control-plane": theirs, "node-a": ours} {
		if got := c.upgradeWeb(t, place, at, base+"services/pages:http/proxy/upgrade"); got != "you said hello\n" {
			t.Errorf("upgrade through %s: %q", place, got)
		}
	}
}

// webService leads to the pages.
func webService() []any {
	meta := metav1.ObjectMeta{Name: "pages", Namespace: "default"}
	named, number, tcp, ready := "http", int32(webPort), corev1.ProtocolTCP, true
	ip := lab.MustPlace("pod-a1").IPv4.String()
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: *meta.DeepCopy(), AddressType: "IPv4",
		Ports: []discoveryv1.EndpointPort{{Name: &named, Port: &number, Protocol: &tcp}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "pages-1"}}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
	return []any{
		&corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta,
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: named, Port: 80, Protocol: tcp}}}},
		slice,
	}
}

// makePod makes the Pod behind the pages: the API server leads to Pods only.
func (c *cluster) makePod(t *testing.T) {
	t.Helper()
	api := c.api.Client.CoreV1().Pods("default")
	pod, err := api.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pages-1"},
		Spec: corev1.PodSpec{NodeName: "node-a", Containers: []corev1.Container{{Name: "web", Image: "none"}}}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		now := int64(0)
		if err := api.Delete(context.WithoutCancel(t.Context()), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Error(err)
		}
	})
	ip := lab.MustPlace("pod-a1").IPv4.String()
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	_, err = api.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	must(t, err)
}

// dialWeb connects to a server in the namespace at hand.
func dialWeb(at string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

// askWeb asks a server on loopback of a place.
func (c *cluster) askWeb(t *testing.T, place, at, method, path string, body io.Reader) (a webAnswer) {
	t.Helper()
	must(t, c.Do(place, func() error {
		conn, err := dialWeb(at)
		if err != nil {
			return err
		}
		defer conn.Close()
		r, err := http.NewRequest(method, "http://"+at+path, body)
		if err != nil {
			return err
		}
		r.Header.Set("X-Test", "one")
		r.Header.Set("Content-Type", "text/x-test")
		r.Header.Set("Cookie", "a=b")
		if err := r.Write(conn); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		a = webAnswer{resp.StatusCode, resp.Header.Get("Content-Type"), strings.Replace(resp.Header.Get("Location"), "http://"+at, "", 1), resp.Header.Get("X-Answer"), string(text)}
		return err
	}))
	return a
}

// upgradeWeb changes to another protocol and says hello in it.
func (c *cluster) upgradeWeb(t *testing.T, place, at, path string) (answer string) {
	t.Helper()
	must(t, c.Do(place, func() error {
		conn, err := dialWeb(at)
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n", path, at)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			answer = fmt.Sprint(resp, err)
			return nil
		}
		fmt.Fprint(conn, "hello\n")
		answer, err = in.ReadString('\n')
		return err
	}))
	return answer
}
