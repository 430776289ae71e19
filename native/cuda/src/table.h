// SPDX-License-Identifier: Apache-2.0
//
// What this process knows about handles and pointers: key -> entry. Sharded, so that threads at work
// at once rarely meet; open addressing, so that an entry costs no allocation of its own.
//
// An entry begins with `std::uint64_t key`, and key 0 is a free place. It must be trivial to copy.
#ifndef XPU_CUDA_TABLE_H
#define XPU_CUDA_TABLE_H

#include <cstdint>
#include <cstdlib>

#include "lock.h"

namespace xpu {

template <typename Entry>
class Table {
  public:
    // False when no memory is left for the entry; the caller then must undo what it stands for.
    // Likewise for key 0.
    bool add(const Entry& entry) noexcept {
        if (entry.key == 0) return false;
        Shard& home = shard(entry.key);
        Hold hold(home.lock);
        return home.insert(entry) != nullptr;
    }

    // Removes and returns the entry; its key is 0 when there was none.
    Entry take(std::uint64_t key) noexcept {
        Shard& home = shard(key);
        Hold hold(home.lock);
        Entry* found = home.find(key);
        if (found == nullptr) return {};
        const Entry taken = *found;
        home.erase(found);
        return taken;
    }

    // Calls change(entry) under the lock; it may not use this table. The entry goes when change()
    // returns false. False when there is none.
    template <typename Change>
    bool with(std::uint64_t key, Change change) noexcept {
        Shard& home = shard(key);
        Hold hold(home.lock);
        Entry* found = home.find(key);
        if (found == nullptr) return false;
        if (!change(*found)) home.erase(found);
        return true;
    }

    // The same, with a new entry where there is none; false when no memory is left for it, and
    // for key 0.
    template <typename Change>
    bool with_new(std::uint64_t key, Change change) noexcept {
        Shard& home = shard(key);
        Hold hold(home.lock);
        Entry* found = home.find(key);
        if (found == nullptr && key != 0) {
            Entry fresh = {};
            fresh.key = key;
            found = home.insert(fresh);
        }
        if (found == nullptr) return false;
        if (!change(*found)) home.erase(found);
        return true;
    }

    // Removes every entry that `gone` wants and calls taken(entry) for it.
    template <typename Gone, typename Taken>
    void take_if(Gone gone, Taken taken) noexcept {
        for (Shard& home : shards_) {
            Hold hold(home.lock);
            for (std::uint32_t at = 0; at < home.capacity;) {
                if (home.entries[at].key == 0 || !gone(home.entries[at])) {
                    ++at;
                    continue;
                }
                taken(home.entries[at]);
                home.erase(home.entries + at); // may move another entry here: look again
            }
        }
    }

    // Calls look(entry) under the lock until it returns true.
    template <typename Look>
    bool any(Look look) noexcept {
        for (Shard& home : shards_) {
            Hold hold(home.lock);
            for (std::uint32_t at = 0; at < home.capacity; ++at)
                if (home.entries[at].key != 0 && look(home.entries[at])) return true;
        }
        return false;
    }

    // In a forked child: the entries are the parent's. Not freed, since another thread of the parent
    // may have held the lock half way.
    void forget_all() noexcept {
        for (Shard& home : shards_) {
            home.lock.unlock();
            home.entries = nullptr;
            home.capacity = home.used = 0;
        }
    }

  private:
    static constexpr unsigned kShards = 64;
    static constexpr std::uint32_t kFirstCapacity = 64;

    // Multiplied, so that every bit of the key reaches the upper ones, which choose shard and place.
    static std::uint64_t hash(std::uint64_t key) noexcept { return key * 0x9E3779B97F4A7C15ull; }

    struct Shard {
        SpinLock lock;
        Entry* entries = nullptr;
        std::uint32_t capacity = 0; // power of two
        std::uint32_t used = 0;

        std::uint32_t place(std::uint64_t key) const noexcept {
            return static_cast<std::uint32_t>(hash(key) >> 26) & (capacity - 1);
        }

        Entry* find(std::uint64_t key) noexcept {
            if (key == 0 || used == 0) return nullptr;
            std::uint32_t at = place(key);
            while (entries[at].key != 0 && entries[at].key != key) at = (at + 1) & (capacity - 1);
            return entries[at].key == key ? entries + at : nullptr;
        }

        Entry* insert(const Entry& entry) noexcept {
            if ((used + 1) * 4 > capacity * 3 && !grow()) return nullptr;
            ++used;
            return put(entry);
        }

        Entry* put(const Entry& entry) noexcept {
            std::uint32_t at = place(entry.key);
            while (entries[at].key != 0) at = (at + 1) & (capacity - 1);
            entries[at] = entry;
            return entries + at;
        }

        bool grow() noexcept {
            const std::uint32_t wanted = capacity == 0 ? kFirstCapacity : capacity * 2;
            auto* fresh = static_cast<Entry*>(std::calloc(wanted, sizeof(Entry)));
            if (fresh == nullptr) return false;
            Entry* old = entries;
            const std::uint32_t old_capacity = capacity;
            entries = fresh;
            capacity = wanted;
            for (std::uint32_t at = 0; at < old_capacity; ++at) {
                if (old[at].key != 0) put(old[at]);
            }
            std::free(old);
            return true;
        }

        // Linear probing without tombstones: what follows the hole in its run is put in anew.
        void erase(Entry* entry) noexcept {
            *entry = {};
            --used;
            auto at = static_cast<std::uint32_t>(entry - entries);
            for (at = (at + 1) & (capacity - 1); entries[at].key != 0; at = (at + 1) & (capacity - 1)) {
                const Entry moved = entries[at];
                entries[at] = {};
                put(moved);
            }
        }
    };

    Shard& shard(std::uint64_t key) noexcept { return shards_[hash(key) >> 58]; }

    Shard shards_[kShards];
};

} // namespace xpu
#endif
