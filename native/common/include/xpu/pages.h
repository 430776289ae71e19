/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two shared pages of a slice: what the node agent grants, and what the container has used.
 *
 *   config page   written by the node agent, mapped read-only in the container
 *                 (host <slice dir>/config.page, container /etc/xpu/config.page)
 *   ledger page   mapped read-write by every process of the container
 *                 (host <slice dir>/ledger.page, container /run/xpu/ledger.page)
 *
 * One pair per container, with one entry per card (a container may hold slices of several cards).
 * Both are plain memory: no pointers, no pthread objects, little endian, naturally aligned. Fields
 * named "shared" are only touched with atomic operations. A reader that meets another magic or
 * version treats the page as absent. The layout is frozen: offsets are asserted below and in
 * native/cluster/pages (Go); a change needs a new version.
 */
#ifndef XPU_PAGES_H
#define XPU_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define XPU_CONFIG_MAGIC 0x43555058u /* "XPUC" */
#define XPU_LEDGER_MAGIC 0x4c555058u /* "XPUL" */
#define XPU_PAGES_VERSION 1u
#define XPU_MAX_CARDS 16u
#define XPU_MAX_PROCESSES 256u
#define XPU_UUID_BYTES 48u /* "GPU-8-4-4-4-12" and a NUL fit */
#define XPU_DEFAULT_TAU_NS 500000000u /* where nobody grants another; gpu-device-plugin's burstNs */

/* How the compute limit of a card is enforced. */
enum xpu_mode {
    XPU_MODE_NONE = 0,        /* no compute limit */
    XPU_MODE_HARD = 1,        /* never above the share (default) */
    XPU_MODE_ELASTIC = 2,     /* the agent raises the share while others are idle */
    XPU_MODE_FIXED_SHARE = 3, /* exclusive windows */
    XPU_MODE_PRIORITY = 4     /* runs in what others leave, by weight */
};

struct xpu_card_config {
    char uuid[XPU_UUID_BYTES]; /* identity of the card, never its index */
    uint64_t memory_bytes;     /* quota; 0 = no limit */
    uint64_t tau_ns;           /* burst credit: how far the TAT may run ahead of now */
    uint32_t cores_percent;    /* 1..100; 0 = no limit */
    uint32_t mode;             /* enum xpu_mode */
    uint32_t weight;           /* for elastic and priority; 0 = only idle time */
    uint32_t trim_q16;         /* NVML ratio trim, 16.16 fixed point; 0 reads as 1.0 */
    uint32_t vid;              /* virtual card number, as in vgpu-ids.config */
    uint32_t effective_q16;    /* share in force now, percent in 16.16; 0 = cores_percent. Above
                                  cores_percent only in modes elastic and priority */
    uint64_t overhead_bytes;   /* memory of this slice that only NVML sees; counts against the quota */
    uint64_t context_bytes;    /* what one context costs on this card: charged at its creation */
    uint32_t flags;            /* XPU_CARD_… */
    uint32_t frame_us;         /* fixed-share: length of a frame, frames are counted from 0 of
                                  CLOCK_MONOTONIC; 0 = no windows */
    uint32_t window_start_us;  /* fixed-share: where in each frame this slice's window begins */
    uint32_t window_us;        /* fixed-share: its length */
    uint32_t reserved[2];
};

/* Flags of a card. */
#define XPU_CARD_PAUSED 0x1u        /* no new work starts until the flag is taken away (priority) */
#define XPU_CARD_OVERSUBSCRIBE 0x2u /* what exceeds the quota becomes managed memory */

struct xpu_config_page {
    uint32_t magic;
    uint32_t version;
    uint32_t epoch; /* seqlock: odd while the agent writes; shared */
    uint32_t cards; /* entries used in card[] */
    uint8_t reserved[48];
    struct xpu_card_config card[XPU_MAX_CARDS];
};

struct xpu_card_ledger {
    int64_t tat_ns;         /* GCRA theoretical arrival time, CLOCK_MONOTONIC; shared */
    uint64_t charged_ns;    /* GPU time charged so far; shared */
    uint64_t throttled_ns;  /* time callers spent waiting; shared */
    uint64_t memory_bytes;  /* sum over the slots, as last seen by a writer; the slots are the truth; shared */
    uint64_t denied;        /* allocations refused; shared */
    uint64_t launches;      /* work items admitted; shared */
    uint64_t stands_at_q32; /* rate at which tat_ns stands, 32.32; 0 = nothing charged yet; shared */
    int64_t busy_until_ns;  /* fixed-share: when the work handed to the card is expected to end; shared */
    uint64_t reserved[8];
};

/*
 * One process of the container. A slot is free when owner is 0; its owner lives while it holds a
 * POSIX record lock on the slot's first byte in the ledger file.
 */
struct xpu_process_slot {
    uint64_t owner;         /* (start time in ticks << 32) ^ pid in the container; shared, CAS */
    uint32_t pid;           /* pid in the container's namespace */
    uint32_t reserved0;
    uint64_t memory_bytes[XPU_MAX_CARDS]; /* shared */
    uint64_t charged_ns[XPU_MAX_CARDS];   /* shared */
    uint64_t reserved[14];
};

struct xpu_ledger_page {
    uint32_t magic;
    uint32_t version;
    uint32_t slots_used; /* highest slot ever used + 1, so that readers need not visit all; shared */
    uint32_t reserved0[13];
    struct xpu_card_ledger card[XPU_MAX_CARDS];
    struct xpu_process_slot process[XPU_MAX_PROCESSES];
};

#ifdef __cplusplus
#define XPU_STATIC_ASSERT(what) static_assert(what, #what)
#else
#define XPU_STATIC_ASSERT(what) _Static_assert(what, #what)
#endif
XPU_STATIC_ASSERT(sizeof(struct xpu_card_config) == 128);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, memory_bytes) == 48);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, tau_ns) == 56);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, cores_percent) == 64);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, mode) == 68);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, weight) == 72);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, trim_q16) == 76);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, vid) == 80);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, effective_q16) == 84);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, overhead_bytes) == 88);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, context_bytes) == 96);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, flags) == 104);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, frame_us) == 108);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, window_start_us) == 112);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_config, window_us) == 116);
XPU_STATIC_ASSERT(offsetof(struct xpu_config_page, card) == 64);
XPU_STATIC_ASSERT(sizeof(struct xpu_config_page) == 2112);
XPU_STATIC_ASSERT(sizeof(struct xpu_card_ledger) == 128);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_ledger, stands_at_q32) == 48);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_ledger, busy_until_ns) == 56);
XPU_STATIC_ASSERT(sizeof(struct xpu_process_slot) == 384);
XPU_STATIC_ASSERT(offsetof(struct xpu_ledger_page, card) == 64);
XPU_STATIC_ASSERT(offsetof(struct xpu_ledger_page, process) == 2112);
XPU_STATIC_ASSERT(sizeof(struct xpu_ledger_page) == 100416);

#endif
