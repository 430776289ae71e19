// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the tenants of bench-share do. A shape runs items one after another until told to stop; an
// item is what an application would call a step: launches, then a wait.
#ifndef BENCH_LOAD_SHAPES_H
#define BENCH_LOAD_SHAPES_H

#include <atomic>
#include <mutex>
#include <vector>

#include "api.h"

namespace bench {

// What a shape has done so far; read by another thread while it runs.
class Progress {
  public:
    // An item is complete: `kernel_ns` of card time, begun (or asked for) at `since`.
    void complete(Nanos kernel_ns, Nanos since);

    struct Count {
        std::int64_t items;
        Nanos kernel_ns;
        Nanos last_item; // when the latest item was complete
    };
    Count count() const;
    struct Item {
        Nanos since, done;
    };
    std::vector<Item> items() const; // in the order of completion

  private:
    mutable std::mutex mutex_;
    Count count_ = {};
    std::vector<Item> items_;
};

// Run the shape called `name` until `stop`; fails naming the shapes when there is none of that name,
// and naming the missing function when the driver lacks what the shape needs.
void run_shape(const char* name, CUfunction kernel, unsigned seed, Progress& progress,
               const std::atomic<bool>& stop);

} // namespace bench
#endif
