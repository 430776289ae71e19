// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"log/slog"
	"strings"
)

// notices says each thing once, and once more when it is over.
type notices struct {
	log  *slog.Logger
	said map[string]bool
}

func (n *notices) say(key, text string, details ...any) {
	if !n.said[key] {
		n.said[key] = true
		n.log.Warn(text, details...)
	}
}

func (n *notices) unsay(key, text string, details ...any) {
	if n.said[key] {
		delete(n.said, key)
		n.log.Info(text, details...)
	}
}

// drop forgets what was said of a slice that ended: its key may come back.
func (n *notices) drop(slice string) {
	for key := range n.said {
		if strings.HasPrefix(key, slice+" ") {
			delete(n.said, key)
		}
	}
}
