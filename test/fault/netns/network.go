package netns

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Options of a Network.
type Options struct {
	// SmallPackets has the hosts send what goes over a wire: packets of at most 1500 bytes. Otherwise they pass up to 64 KiB to
	// each other at once, which costs far less; but one that is lost then is the loss of up to 45 packets.
	SmallPackets bool
}

// Network is a switch with hosts.
type Network struct {
	opts   Options
	bridge *Namespace

	mu       sync.Mutex
	hosts    []*Host
	loss     map[*Host]int // per cent, in each direction
	cut      map[pair]bool
	oneWay   map[pair]bool // from a to b
	noRoute  map[pair]bool // from a to b
	throttle map[*Host]bool
}

// pair is two hosts. Where the direction does not matter the one with the lower address is first.
type pair struct{ a, b *Host }

func (p pair) compare(q pair) int { return cmp.Or(p.a.IP.Compare(q.a.IP), p.b.IP.Compare(q.b.IP)) }

func pairOf(a, b *Host) pair {
	if b.IP.Less(a.IP) {
		a, b = b, a
	}
	return pair{a, b}
}

// Host is a namespace with a loopback interface and one to the switch.
type Host struct {
	*Namespace
	Name string
	IP   netip.Addr
	port string // of the switch
}

var network = netip.MustParsePrefix("10.77.0.0/16")

// NewNetwork makes a switch without hosts.
func NewNetwork(opts Options) (*Network, error) {
	bridge, err := New()
	if err != nil {
		return nil, err
	}
	n := &Network{opts: opts, bridge: bridge, loss: map[*Host]int{}, cut: map[pair]bool{}, oneWay: map[pair]bool{}, noRoute: map[pair]bool{}, throttle: map[*Host]bool{}}
	if err := bridge.run("link add br0 type bridge\nlink set br0 up\n", "ip", "-batch", "-"); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close takes the network away, and kills what its hosts still run.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		h.Close()
	}
	n.hosts = nil
	n.bridge.Close()
}

// AddHost connects a new host.
func (n *Network) AddHost(name string) (*Host, error) {
	ns, err := New()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	number := len(n.hosts) + 1
	ip := network.Addr().As4()
	ip[2], ip[3] = byte(number/250), byte(number%250+1)
	h := &Host{Namespace: ns, Name: name, IP: netip.AddrFrom4(ip), port: fmt.Sprintf("p%d", number)}
	n.hosts = append(n.hosts, h)
	outside := fmt.Sprintf("link add %s type veth peer name eth0 netns %s\nlink set %s master br0 up\n", h.port, ns.path, h.port)
	inside := fmt.Sprintf("link set lo up\naddr add %s/%d dev eth0\nlink set eth0 up\n", h.IP, network.Bits())
	if n.opts.SmallPackets {
		outside += fmt.Sprintf("link set %s gso_max_segs 1\n", h.port)
		inside += "link set eth0 gso_max_segs 1\n"
	}
	if err := n.bridge.run(outside, "ip", "-batch", "-"); err != nil {
		return nil, err
	}
	return h, ns.run(inside, "ip", "-batch", "-")
}

// Cut keeps a host and others from reaching each other, until Heal.
func (n *Network) Cut(h *Host, from ...*Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, other := range from {
		if other != h {
			n.cut[pairOf(h, other)] = true
		}
	}
	return n.apply()
}

// CutOff keeps a host and all others from reaching each other, until Heal.
func (n *Network) CutOff(h *Host) error {
	n.mu.Lock()
	others := slices.Clone(n.hosts)
	n.mu.Unlock()
	return n.Cut(h, others...)
}

// CutOneWay loses what a host sends to others, until Heal; what they send arrives.
func (n *Network) CutOneWay(from *Host, to ...*Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, other := range to {
		if other != from {
			n.oneWay[pair{from, other}] = true
		}
	}
	return n.apply()
}

// Refuse has a host know no way to others, until Heal: connecting to them fails at once, instead of waiting for an answer.
func (n *Network) Refuse(h *Host, to ...*Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, other := range to {
		p := pair{h, other}
		if other == h || n.noRoute[p] {
			continue
		}
		if err := p.route("add"); err != nil {
			return err
		}
		n.noRoute[p] = true
	}
	return nil
}

// route adds or deletes that there is no way from a to b.
func (p pair) route(do string) error {
	return p.a.run(fmt.Sprintf("route %s unreachable %v/32\n", do, p.b.IP), "ip", "-batch", "-")
}

// Lose loses so many per cent of the packets that a host sends, and of those sent to it, until Heal.
func (n *Network) Lose(h *Host, percent int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss[h] = percent
	return n.apply()
}

// Throttle bounds the rate, in bits a second, at which a host sends and is sent to, until Heal. What is sent faster waits for up
// to half a second in a queue, as before a slow link, and is lost beyond that.
func (n *Network) Throttle(h *Host, rate int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.throttle[h] = true
	const queue = "qdisc replace dev %s root tbf rate %dbit burst 128k latency 500ms\n"
	if err := n.bridge.run(fmt.Sprintf(queue, h.port, rate), "tc", "-batch", "-"); err != nil {
		return err
	}
	return h.run(fmt.Sprintf(queue, "eth0", rate), "tc", "-batch", "-")
}

// Heal makes all well again.
func (n *Network) Heal() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.oneWay)
	clear(n.loss)
	for p := range n.noRoute {
		if err := p.route("del"); err != nil {
			return err
		}
		delete(n.noRoute, p)
	}
	for h := range n.throttle {
		if err := n.bridge.run("qdisc del dev "+h.port+" root\n", "tc", "-batch", "-"); err != nil {
			return err
		}
		if err := h.run("qdisc del dev eth0 root\n", "tc", "-batch", "-"); err != nil {
			return err
		}
		delete(n.throttle, h)
	}
	return n.apply()
}

// apply gives the kernel, in one step, the rules of what is dropped where packets pass the switch.
func (n *Network) apply() error {
	var b strings.Builder
	b.WriteString("flush ruleset\ntable bridge faults {\nchain pass {\ntype filter hook forward priority 0; policy accept;\n")
	drop := func(from, to *Host) { fmt.Fprintf(&b, "ip saddr %v ip daddr %v drop\n", from.IP, to.IP) }
	for _, p := range slices.SortedFunc(maps.Keys(n.cut), pair.compare) {
		drop(p.a, p.b)
		drop(p.b, p.a)
	}
	for _, p := range slices.SortedFunc(maps.Keys(n.oneWay), pair.compare) {
		drop(p.a, p.b)
	}
	for _, h := range slices.SortedFunc(maps.Keys(n.loss), func(x, y *Host) int { return x.IP.Compare(y.IP) }) {
		for _, direction := range []string{"iifname", "oifname"} {
			rule := fmt.Sprintf("numgen random mod 100 < %d drop", n.loss[h])
			if n.loss[h] >= 100 { // which nft does not compare with
				rule = "drop"
			}
			fmt.Fprintf(&b, "%s %q %s\n", direction, h.port, rule)
		}
	}
	b.WriteString("}\n}\n")
	return n.bridge.run(b.String(), "nft", "-f", "-")
}
