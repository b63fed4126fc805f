package kv

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

func BenchmarkUpdate(b *testing.B) {
	db := openTest(b, Options{})
	key := make([]byte, 16)
	value := make([]byte, 120)
	i := uint64(0)
	for b.Loop() {
		i++
		if err := db.Update(i, func(tx Txn) error {
			for k := range uint64(3) {
				binary.BigEndian.PutUint64(key, i*2654435761%1e6)
				binary.BigEndian.PutUint64(key[8:], k)
				if tx.Get(0, key) == nil {
					tx.Put(0, key, value)
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(db.Stats().WaitTime.Microseconds())/float64(b.N), "waited-us/op")
}

func BenchmarkView(b *testing.B) {
	db := openTest(b, Options{})
	for i := range uint64(200000) {
		if err := db.Update(i+1, func(tx Txn) error {
			tx.Put(0, binary.BigEndian.AppendUint64(nil, i), make([]byte, 120))
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Flush(); err != nil {
		b.Fatal(err)
	}
	b.Run("get", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			key := make([]byte, 8)
			for p.Next() {
				binary.BigEndian.PutUint64(key, rand.Uint64N(200000))
				_ = db.View(func(r Reader) error {
					if r.Get(0, key) == nil {
						b.Error("absent")
					}
					return nil
				})
			}
		})
	})
	b.Run("scan100", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			key := make([]byte, 8)
			for p.Next() {
				binary.BigEndian.PutUint64(key, rand.Uint64N(199000))
				_ = db.View(func(r Reader) error {
					n := 0
					r.Scan(0, key, func(_, _ []byte) bool { n++; return n < 100 })
					return nil
				})
			}
		})
	})
}
