// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const quiet = 5 * time.Minute

var (
	errLost = errors.New("GPU is lost")
	start   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func TestJudge(t *testing.T) {
	well := map[string]error{"a": nil, "b": nil}
	lost := map[string]error{"a": errLost, "b": nil}
	look := func(answers map[string]error) func(*Judge) { return func(j *Judge) { j.Looked(answers) } }
	xid := func(uuid string, code uint64, at time.Duration) func(*Judge) {
		uuids := []string{uuid}
		if uuid == "" {
			uuids = nil
		}
		return func(j *Judge) { j.Event(uuids, code, start.Add(at)) }
	}
	for name, test := range map[string]struct {
		history []func(*Judge)
		at      time.Duration
		want    string
	}{
		"well from the start":            {nil, 0, "map[]"},
		"one look missed":                {[]func(*Judge){look(lost)}, 0, "map[]"},
		"two looks missed":               {[]func(*Judge){look(lost), look(lost)}, 0, "map[a:GPU is lost]"},
		"gone from the list":             {[]func(*Judge){look(map[string]error{"b": nil}), look(map[string]error{"b": nil})}, 0, "map[a:it is not on the node]"},
		"back":                           {[]func(*Judge){look(lost), look(lost), look(well)}, 0, "map[]"},
		"not twice in a row":             {[]func(*Judge){look(lost), look(well), look(lost)}, 0, "map[]"},
		"a critical XID":                 {[]func(*Judge){xid("b", 79, 0)}, time.Second, "map[b:critical XID 79]"},
		"a program's XID":                {[]func(*Judge){xid("b", 31, 0), xid("b", 43, 0), xid("b", 45, 0)}, time.Second, "map[]"},
		"an XID of nobody in particular": {[]func(*Judge){xid("", 79, 0)}, time.Second, "map[a:critical XID 79 b:critical XID 79]"},
		"an XID of a stranger":           {[]func(*Judge){xid("z", 79, 0)}, time.Second, "map[]"},
		"quiet long enough":              {[]func(*Judge){xid("b", 79, 0), look(well)}, quiet, "map[]"},
		"not quiet since":                {[]func(*Judge){xid("b", 79, 0), xid("b", 48, 2*time.Minute)}, quiet, "map[b:critical XID 48]"},
		"quiet, for it is lost":          {[]func(*Judge){xid("a", 79, 0), look(lost), look(lost)}, quiet, "map[a:GPU is lost]"},
	} {
		t.Run(name, func(t *testing.T) {
			j := NewJudge([]string{"a", "b"}, quiet)
			for _, step := range test.history {
				step(j)
			}
			if got := fmt.Sprint(j.Sick(start.Add(test.at))); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

// driver is told what to say. It counts how it was used.
type driver struct {
	mutex   sync.Mutex
	busy    bool
	answers map[string]error
	failure error // of everything
	events  chan Event
	looks   []time.Time
	open    bool
	opened  time.Duration // how long it has been open
	since   time.Time
}

func (d *driver) enter() {
	if !d.open {
		d.open, d.since = true, time.Now()
	}
}

// set changes what it says from now on.
func (d *driver) set(change func()) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	change()
}

func (d *driver) inUse() bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.busy
}

func (d *driver) Close() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.open {
		d.open = false
		d.opened += time.Since(d.since)
	}
}

func (d *driver) Look() (map[string]error, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.enter()
	d.looks = append(d.looks, time.Now())
	return d.answers, d.failure
}

func (d *driver) Wait(ctx context.Context, limit time.Duration) (*Event, error) {
	d.mutex.Lock()
	d.enter()
	failure := d.failure
	d.mutex.Unlock()
	if failure != nil {
		return nil, failure
	}
	select {
	case event := <-d.events:
		return &event, nil
	case <-time.After(limit):
	case <-ctx.Done():
	}
	return nil, nil
}

// world is a node with cards a and b, in time that passes when nobody has anything to do.
type world struct {
	driver *driver
	sick   map[string]string
	told   int
	log    strings.Builder
	done   chan error
}

func during(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{driver: &driver{answers: map[string]error{"a": nil, "b": nil}, events: make(chan Event)}, done: make(chan error, 1)}
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			w.done <- Watch(ctx, Deps{Driver: w.driver, Judge: NewJudge([]string{"a", "b"}, quiet), Pace: Regular, InUse: w.driver.inUse,
				Changed: func(sick map[string]string) { w.driver.set(func() { w.sick, w.told = sick, w.told+1 }) },
				Log:     slog.New(slog.NewTextHandler(&w.log, nil))})
		}()
		test(t, w)
		cancel()
		synctest.Wait()
		w.driver.set(func() {
			if w.driver.open {
				t.Error("the library was left open")
			}
		})
	})
}

func (w *world) after(t *testing.T, duration time.Duration, want map[string]string) {
	t.Helper()
	time.Sleep(duration)
	synctest.Wait()
	w.driver.mutex.Lock()
	defer w.driver.mutex.Unlock()
	if len(w.sick)+len(want) > 0 && !reflect.DeepEqual(w.sick, want) {
		t.Errorf("sick are %v, want %v", w.sick, want)
	}
}

func TestALostCardIsToldAndItsReturn(t *testing.T) {
	during(t, func(t *testing.T, w *world) {
		w.after(t, time.Minute, nil)
		w.driver.set(func() { w.driver.answers = map[string]error{"a": errLost, "b": nil} })
		w.after(t, 2*Regular.Idle+2*Regular.Wait, map[string]string{"a": "GPU is lost"})
		w.after(t, time.Hour, map[string]string{"a": "GPU is lost"})
		w.driver.set(func() { w.driver.answers = map[string]error{"a": nil, "b": nil} })
		w.after(t, Regular.Idle+2*Regular.Wait, nil)
		w.driver.set(func() {
			if w.told != 2 {
				t.Errorf("told %d times, want once that it is lost and once that it is back", w.told)
			}
		})
	})
}

func TestACriticalXIDIsToldAtOnceAndForgottenAfterQuiet(t *testing.T) {
	during(t, func(t *testing.T, w *world) {
		w.driver.set(func() { w.driver.busy = true })
		w.after(t, time.Minute, nil)
		w.driver.events <- Event{UUID: "b", Cards: []string{"b"}, XID: 31}
		w.driver.events <- Event{UUID: "a", Cards: []string{"a"}, XID: 79}
		w.after(t, 0, map[string]string{"a": "critical XID 79"})
		w.after(t, quiet-2*Regular.Wait, map[string]string{"a": "critical XID 79"})
		w.after(t, 3*Regular.Wait, nil)
	})
}

// Who holds NVML open keeps the driver from being exchanged.
func TestNVMLIsClosedWhileNoSliceHasAProcess(t *testing.T) {
	during(t, func(t *testing.T, w *world) {
		w.after(t, time.Hour, nil)
		w.driver.Close()
		looks := 0
		w.driver.set(func() {
			looks = len(w.driver.looks)
			if w.driver.opened > 0 || looks > 125 {
				t.Errorf("idle for an hour it was open for %s and looked %d times", w.driver.opened, looks)
			}
		})
		w.driver.set(func() { w.driver.busy = true })
		w.after(t, time.Minute, nil)
		w.driver.set(func() {
			if !w.driver.open || len(w.driver.looks)-looks < 9 {
				t.Errorf("in use: open %t, %d looks in a minute", w.driver.open, len(w.driver.looks)-looks)
			}
		})
	})
}

func TestADriverThatDoesNotAnswerHasNoCards(t *testing.T) {
	during(t, func(t *testing.T, w *world) {
		w.driver.set(func() { w.driver.busy = true })
		w.driver.set(func() { w.driver.failure = errors.New("driver not loaded") })
		w.after(t, time.Minute, map[string]string{"a": "driver not loaded", "b": "driver not loaded"})
		w.driver.set(func() { w.driver.failure = nil })
		w.after(t, time.Minute, nil)
		for _, once := range []string{"NVML does not answer", "NVML answers again", "no events from NVML", "gives events again"} {
			if got := strings.Count(w.log.String(), once); got != 1 {
				t.Errorf("%q %d times in\n%s", once, got, w.log.String())
			}
		}
	})
}

func TestACardThatComesEndsTheWatch(t *testing.T) {
	during(t, func(t *testing.T, w *world) {
		w.driver.set(func() { w.driver.answers = map[string]error{"a": nil, "b": nil, "c": errLost} })
		w.after(t, time.Hour, nil)
		select {
		case err := <-w.done:
			t.Fatalf("a card that doesn't answer has come: %v", err)
		default:
		}
		w.driver.set(func() { w.driver.answers = map[string]error{"a": nil, "b": nil, "c": nil} })
		if err := <-w.done; !errors.Is(err, ErrNewCard) {
			t.Errorf("%v", err)
		}
	})
}
