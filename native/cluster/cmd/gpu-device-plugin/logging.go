// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"gopkg.in/natefinch/lumberjack.v2"
)

// logFile is the file in --log-dir.
const logFile = "gpu-device-plugin.log"

// logConfig says where the log goes. The names of the flags are upstream's; there a file is the default,
// here the console is, for a container's root is read-only.
type logConfig struct {
	level      slog.Level
	directory  string
	console    bool
	maxMiB     int
	maxBackups int
	maxDays    int
}

// flags registers them; level is to be parsed by settle.
func (c *logConfig) flags(flags *flag.FlagSet) (level *string) {
	flags.StringVar(&c.directory, "log-dir", "", "directory of a log file that is rotated; empty: none")
	flags.BoolVar(&c.console, "logging-console", true, "log to standard error")
	flags.IntVar(&c.maxMiB, "max-size", 20, "MiB after which the log file is rotated")
	flags.IntVar(&c.maxBackups, "max-backups", 10, "former log files that are kept; 0: all")
	flags.IntVar(&c.maxDays, "max-age", 30, "days that former log files are kept; 0: for ever")
	return flags.String("log-level", "info", "debug, info, warning or error")
}

func (c *logConfig) settle(level string) error {
	var problems []error
	var unknown error
	c.level, unknown = parseLevel(level)
	problems = append(problems, unknown)
	if !c.console && c.directory == "" {
		problems = append(problems, errors.New("--logging-console=false without --log-dir: nothing would be logged"))
	}
	if c.maxMiB < 1 {
		problems = append(problems, fmt.Errorf("--max-size %d is not 1 or more MiB", c.maxMiB))
	}
	for name, value := range map[string]int{"--max-backups": c.maxBackups, "--max-age": c.maxDays} {
		if value < 0 {
			problems = append(problems, fmt.Errorf("%s %d is below 0", name, value))
		}
	}
	return errors.Join(problems...)
}

// open begins the log. A file that can't be written is an error now rather than silence later.
func (c logConfig) open(console io.Writer) (*slog.Logger, error) {
	writers := []io.Writer{}
	if c.console {
		writers = append(writers, console)
	}
	if c.directory != "" {
		file := &lumberjack.Logger{Filename: filepath.Join(c.directory, logFile), MaxSize: c.maxMiB,
			MaxBackups: c.maxBackups, MaxAge: c.maxDays}
		if _, err := file.Write(nil); err != nil {
			return nil, fmt.Errorf("--log-dir %s: %w", c.directory, err)
		}
		writers = append(writers, file)
	}
	return slog.New(slog.NewTextHandler(io.MultiWriter(writers...), &slog.HandlerOptions{Level: c.level})), nil
}
