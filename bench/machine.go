package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ThisMachine describes the machine that the caller runs on.
func ThisMachine(env Environment) (Machine, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Machine{}, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	kB, _ := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal", ":"), " kB")) // unknown is 0
	return Machine{
		Kernel: unix.ByteSliceToString(name.Release[:]), CPU: field("/proc/cpuinfo", "model name", ":"), CPUs: runtime.NumCPU(),
		MemoryMB: kB >> 10, System: strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`), Tools: env.Tools(),
	}, nil
}

// field returns the first value of that name in a file of lines such as
// "name: value", empty if there is none.
func field(path, name, separator string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), separator)
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
