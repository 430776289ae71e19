// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// server counts writes and may be away. Its time is the test's, which no busy machine delays.
type server struct {
	mutex  sync.Mutex
	away   bool
	value  string // what the node has to say
	writes []time.Time
	last   map[string]string
}

func (s *server) write(_ context.Context, values map[string]string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.writes = append(s.writes, time.Now())
	if s.away {
		return errors.New("connection refused")
	}
	s.last = values
	return nil
}

// say changes what the node has to say.
func (s *server) say(value string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.value = value
}

func (s *server) values() map[string]string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return map[string]string{"key": s.value}
}

// heard are the writes so far, and the last value.
func (s *server) heard() ([]time.Time, string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.writes, s.last["key"]
}

func (s *server) leave(away bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.away = away
}

// during runs an Announcer beside test, in time that passes when nobody has anything to do.
func during(t *testing.T, log io.Writer, test func(s *server, a *Announcer)) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{value: "first"}
		a := New(Deps{Values: s.values, Write: s.write, Log: slog.New(slog.NewTextHandler(log, nil))})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); a.Run(ctx) }()
		synctest.Wait()
		test(s, a)
		cancel()
		<-done
	})
}

func TestAChangeIsWrittenWithinASecondAndManyAsOne(t *testing.T) {
	during(t, io.Discard, func(s *server, a *Announcer) {
		said := ""
		for range 100 {
			said += "."
			s.say(said)
			a.Changed()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if writes, last := s.heard(); len(writes) > 3 || last != said {
			t.Errorf("%d writes for a second of changes, the last says %d of %d", len(writes), len(last), len(said))
		}
	})
}

func TestWithoutAChangeItIsSaidEvery30Seconds(t *testing.T) {
	during(t, io.Discard, func(s *server, _ *Announcer) {
		time.Sleep(10 * time.Minute)
		writes, _ := s.heard()
		for i, at := range writes[1:] {
			if gap := at.Sub(writes[i]); gap < 27*time.Second || gap > 30*time.Second {
				t.Errorf("%s between two writes", gap)
			}
		}
		if len(writes) < 20 {
			t.Errorf("%d writes in ten minutes", len(writes))
		}
	})
}

func TestAnAPIServerThatIsAwayIsNotStormed(t *testing.T) {
	var log strings.Builder
	during(t, &log, func(s *server, a *Announcer) {
		s.leave(true)
		s.say("second")
		before, _ := s.heard()
		for range 600 {
			a.Changed()
			time.Sleep(time.Second)
		}
		if writes, _ := s.heard(); len(writes)-len(before) < 20 || len(writes)-len(before) > 50 {
			t.Errorf("%d calls in ten minutes of changes each second", len(writes)-len(before))
		}
		s.leave(false)
		time.Sleep(longest)
		synctest.Wait()
		if _, last := s.heard(); last != "second" {
			t.Errorf("when it is back it hears %q", last)
		}
	})
	if text := log.String(); strings.Count(text, "not written") != 1 || strings.Count(text, "written again") != 1 {
		t.Errorf("the log says it not once:\n%s", text)
	}
}

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: longest, 10_000: longest} {
		if most, least := backoff(failures, 0), backoff(failures, 1); most != want || least != want/2 {
			t.Errorf("%d failures: %s to %s, want %s and half of it", failures, least, most, want)
		}
	}
}
