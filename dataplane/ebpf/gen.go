package ebpf

// The objects are committed, so that building needs no clang. The compiler is
// pinned: another one makes other bytes.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu" -type reason -type source -type route -type frontend_flag -type backend_flag -type member -type flow_flag -type flow_tcp -type address_flag -type port_flag -type interface_flag -type node_flag -type collection -type gone -type socket -type tuple -type event -type filter_state -type promotion -type packet_priority bpf ../../bpf/nodeproxy.bpf.c
