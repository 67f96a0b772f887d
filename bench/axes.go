package bench

import (
	"fmt"
	"math"
	"strconv"

	"gonum.org/v1/plot"
)

// setLog makes an axis logarithmic, from one power of ten to another, so that there
// are labels also where all values are one. An axis that has values which no
// logarithm has stays linear.
func setLog(a *plot.Axis) {
	if !(a.Min > 0) || math.IsInf(a.Max, 0) || math.IsNaN(a.Max) {
		return
	}
	a.Min, a.Max = math.Pow(10, math.Floor(math.Log10(a.Min))), math.Pow(10, math.Ceil(math.Log10(a.Max)))
	if a.Min == a.Max {
		a.Min, a.Max = a.Min/10, a.Max*10
	}
	a.Scale, a.Tick.Marker = plot.LogScale{}, logTicks(a.Tick.Marker)
}

// logTicks keeps ticks that were given.
func logTicks(ticks plot.Ticker) plot.Ticker {
	if _, given := ticks.(plot.ConstantTicks); given {
		return ticks
	}
	return plot.LogTicks{Prec: -1}
}

// exactTicks labels each tick with what it is: gonum's own round 1.05 to 1.
type exactTicks struct{ plot.Ticker }

// Ticks implements [plot.Ticker].
func (e exactTicks) Ticks(low, high float64) []plot.Tick {
	ticks := e.Ticker.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = strconv.FormatFloat(ticks[i].Value, 'g', 6, 64)
		}
	}
	return ticks
}

// drawn is svg, and an error in place of a panic of the library: hours of measuring
// must not be lost for one chart.
func (f figure) drawn() (svg string, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("draw %q: %v", f.title, cause)
		}
	}()
	if svg, err = f.svg(); err != nil {
		return "", fmt.Errorf("draw %q: %w", f.title, err)
	}
	return svg, nil
}
