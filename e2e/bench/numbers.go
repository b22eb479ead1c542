package main

// Rounds in, one row a variant out. Pure.

import (
	"slices"
	"time"
)

// row is what is known of a variant. Each number is the median of its rounds.
type row struct {
	name      string
	perSecond float64
	cpu       time.Duration // of the server, per request
	timesNull float64       // cpu, as a multiple of the null handler's in the same round
	cheaper   float64       // how often cpu goes into that of the usual webhook in the same round
	p50, p99  time.Duration
	allocs    float64 // per request, net/http's and TLS's included
	bytes     float64
	collected float64 // garbage collections a second
	spans     float64 // per request
	lost      float64 // share of the spans
}

// summarize makes a row of each variant, in the order of variants.
func summarize(measured [][]round) []row {
	rows := make([]row, len(variants))
	var null, usual []time.Duration
	for i, v := range variants {
		switch v.name {
		case nullName:
			null = cpuOf(measured[i])
		case usualName:
			usual = cpuOf(measured[i])
		}
	}
	for i, v := range variants {
		rounds := measured[i]
		cpu := cpuOf(rounds)
		of := func(f func(round) float64) float64 {
			var values []float64
			for _, r := range rounds {
				values = append(values, f(r))
			}
			return median(values)
		}
		perCall := func(f func(reading) float64) float64 {
			return of(func(r round) float64 { return (f(r.after) - f(r.before)) / float64(len(r.took)) })
		}
		var timesNull, cheaper []float64
		for n := range rounds {
			timesNull = append(timesNull, float64(cpu[n])/float64(null[n]))
			cheaper = append(cheaper, float64(usual[n])/float64(cpu[n]))
		}
		rows[i] = row{
			name:      v.name,
			perSecond: of(func(r round) float64 { return float64(len(r.took)) / r.elapsed.Seconds() }),
			cpu:       median(cpu),
			timesNull: median(timesNull),
			cheaper:   median(cheaper),
			p50:       time.Duration(of(func(r round) float64 { return float64(percentile(r.took, 50)) })),
			p99:       time.Duration(of(func(r round) float64 { return float64(percentile(r.took, 99)) })),
			allocs:    perCall(func(r reading) float64 { return float64(r.Mallocs) }),
			bytes:     perCall(func(r reading) float64 { return float64(r.Bytes) }),
			spans:     perCall(func(r reading) float64 { return float64(r.Spans) }),
			collected: of(func(r round) float64 { return float64(r.after.Collected-r.before.Collected) / r.elapsed.Seconds() }),
			lost: of(func(r round) float64 {
				return float64(r.after.Lost-r.before.Lost) / max(1, float64(r.after.Spans-r.before.Spans))
			}),
		}
	}
	return rows
}

// cpuOf is the processor time of a request in each round.
func cpuOf(rounds []round) []time.Duration {
	var cpu []time.Duration
	for _, r := range rounds {
		cpu = append(cpu, (r.after.CPU-r.before.CPU)/time.Duration(len(r.took)))
	}
	return cpu
}

// median of at least one value: of two in the middle, the lower one.
func median[T int | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// percentile returns the value that p of 100 do not exceed.
func percentile(values []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*p+99)/100-1]
}
