// SPDX-License-Identifier: Apache-2.0
//
// Operators of this process on one card that may still be under way. It bounds them, and waits for them all at
// the end of a turn. Not thread-safe: the gate has a lock.
#ifndef XPU_ASCEND_FLIGHT_H
#define XPU_ASCEND_FLIGHT_H

#include <cstdint>
#include <deque>
#include <vector>

namespace ascend {

class Flight {
  public:
    // Before an operator starts: waits until fewer than `most` are under way. An operator that waits for a
    // later one of its own process would never end; so after a second it is let through.
    void make_room(std::uint32_t most);
    void started(void* stream, std::uint32_t most);
    // Until everything has ended, or the time is up: false then.
    bool drain(std::int32_t milliseconds);
    // The stream, or the context's streams, are gone: nothing of theirs is waited for.
    void forget_stream(void* stream);
    void forget_context(void* context);
    void forget_all();

  private:
    struct Place {
        void* context;
        void* stream;
        bool operator==(const Place& other) const { return context == other.context && stream == other.stream; }
    };
    struct Mark { // so many operators end before these events
        std::vector<void*> events;
        std::uint32_t operators;
    };

    void mark();
    static void drop(const Mark& mark);

    std::vector<Place> touched_; // since the last drain
    std::vector<Place> batch_;   // since the last mark
    std::deque<Mark> marks_;
    std::uint32_t in_batch_ = 0;
    std::uint32_t under_way_ = 0;
};

} // namespace ascend
#endif
