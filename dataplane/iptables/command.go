package iptables

import "time"

// commandLimit is how long a command of iptables may take: 50,000 Services are
// written in a quarter of it. One that hangs must not stop the agent for good.
const commandLimit = time.Minute
