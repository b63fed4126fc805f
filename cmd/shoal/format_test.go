package main

import (
	"bytes"
	"testing"
	"time"
)

func TestFormats(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 1023: "1023", 1024: "1.0K", 1025: "1.1K", 10 << 10: "10K", 10<<10 + 1: "11K", 1<<20 - 1: "1.0M", 5 << 30: "5.0G", 1<<64 - 1: "16E"} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %s, want %s", n, got, want)
		}
	}
	for text, want := range map[string]int64{"1": 1, "500K": 500 << 10, "8M": 8 << 20, "8MiB/s": 8 << 20, "1.5g": 3 << 29, "2TB": 2 << 40, "off": -1} {
		r := rate{rateFlag: scrubRate}
		if err := r.Set(text); err != nil || r.bytes != want || r.String() != text {
			t.Errorf("%s: %d, want %d, %v", text, r.bytes, want, err)
		}
	}
	for _, text := range []string{"", "M", "-1", "0", "0.1", "1X", "1..2", "99999999P", "8 M", "Inf", "on"} {
		if err := (&rate{rateFlag: scrubRate}).Set(text); err == nil {
			t.Errorf("%q is taken for a rate", text)
		}
	}
	for n, want := range map[uint64]string{0: "0", 1: "1", 1024: "1", 1025: "2"} {
		if got := blocks(n, false); got != want {
			t.Errorf("blocks(%d) = %s, want %s", n, got, want)
		}
	}
	for mode, want := range map[uint32]string{0o100644: "-rw-r--r--", 0o041777: "drwxrwxrwt", 0o104755: "-rwsr-xr-x", 0o102640: "-rw-r-S---", 0o120777: "lrwxrwxrwx", 0o010600: "prw-------"} {
		if got := modeString(mode); got != want {
			t.Errorf("modeString(%o) = %s, want %s", mode, got, want)
		}
	}
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for ago, want := range map[time.Duration]string{time.Hour: "Jul  1 11:00", 300 * 24 * time.Hour: "Sep  4  2025", -48 * time.Hour: "Jul  3  2026"} {
		if got := listTime(now.Add(-ago), now); got != want {
			t.Errorf("listTime of %v ago = %q, want %q", ago, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 shards, 0 directories", 1: "1 shard, 1 directory", 2: "2 shards, 2 directories"} {
		if got := plural(n, "shard") + ", " + plural(n, "directory"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := shown("a\x1b[31m\nb\xffü", true); got != "a?[31m?b?ü" {
		t.Errorf("%q", got)
	}
	var b bytes.Buffer
	if err := inColumns(&b, []string{"aaaa", "b", "cc", "dddddd", "e"}, 14); err != nil || b.String() != "aaaa  dddddd\nb     e\ncc\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestLocations(t *testing.T) {
	for arg, want := range map[string]location{
		"-":               {std: true, path: "-", base: "-"},
		"shoal:/a/b":      {remote: true, path: "/a/b", base: "b"},
		"shoal:a":         {remote: true, path: "/a", base: "a"},
		"shoal:":          {remote: true, path: "/"},
		"shoal:/":         {remote: true, path: "/", slash: true},
		"shoal:/a/../../": {remote: true, path: "/", slash: true},
		"shoal:/a/":       {remote: true, path: "/a", base: "a", slash: true},
		"./shoal:x":       {path: "./shoal:x", base: "shoal:x"},
		"a/.":             {path: "a/."},
		"/":               {path: "/", slash: true},
	} {
		if got := parseLocation(arg); got != want {
			t.Errorf("%q: %+v, want %+v", arg, got, want)
		}
	}
	for source, want := range map[string][2]string{
		"h:1": {"h:1", ""}, "h:1,i:2": {"h:1,i:2", ""}, "h:1:/": {"h:1", "/"}, "h:1,i:2:/a/b/": {"h:1,i:2", "/a/b"}, "[::1]:7:/x/../..": {"[::1]:7", "/"},
	} {
		if addrs, sub := parseSource(source); addrs != want[0] || sub != want[1] {
			t.Errorf("%q: %q %q", source, addrs, sub)
		}
	}
}
