/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two pages by which flexnpud gives a container time on its NPUs. They lie beside the slice's config
 * and ledger page (xpu/pages.h), and entry i of either belongs to card i of the config page.
 *
 *   grant page    written by flexnpud alone, mapped read-only in the container
 *                 (host <directory>/etc/grant.page, container /etc/xpu/grant.page)
 *   request page  written by the container's processes, one slot each
 *                 (host <directory>/run/request.page, container /run/xpu/request.page)
 *   doorbell      a FIFO beside the request page: a byte says "look at my request page"
 *
 * A tenant can write nothing that grants: what he puts into his request page says only that he waits, or
 * which turn he is in, and flexnpud holds that against the turn it gave.
 *
 * A turn, step by step:
 *   1. A process that may not start work sets `wants`, rings, and sleeps on the card's `word`.
 *   2. flexnpud writes `operators`, then `turn`, then `until_ns`, changes `word` and wakes. A reader takes
 *      `until_ns` first and `turn` second, so a number he sees is at least the one the instant belongs to.
 *   3. The process sets `using_turn`, then looks again whether that turn is still open, and starts work
 *      without a system call until `until_ns`. flexnpud shortens it where it recalls the turn.
 *   4. When the instant has passed, or nothing is left to do, it waits for its work, clears `using_turn`
 *      and rings. The turn ends with the last process that uses it.
 *
 * Who owns a slot lives while it holds a POSIX record lock on the slot's first byte of the request page's
 * file, as in the ledger (xpu/slice.h says why): the kernel ends it with the process, in any namespace.
 *
 * Little endian, naturally aligned, no pointers, no pthread objects. Fields named "shared" are touched by
 * atomic operations only. A reader that meets another magic or version treats the page as absent. The
 * layout is frozen: a change needs a new version.
 */
#ifndef XPU_ASCEND_GRANT_PAGE_H
#define XPU_ASCEND_GRANT_PAGE_H

#include "xpu/pages.h"

#define XPU_GRANT_MAGIC 0x47555058u   /* "XPUG" */
#define XPU_REQUEST_MAGIC 0x52555058u /* "XPUR" */
#define XPU_GRANT_VERSION 1u
#define XPU_MAX_REQUESTS 64u        /* processes of one container */
#define XPU_MAX_OPERATORS 16u       /* flexnpud.conf: 0 < quota <= 16 */

struct xpu_card_grant {
    uint64_t turn;      /* number of the latest turn, 0 = none yet; shared */
    int64_t until_ns;   /* CLOCK_MONOTONIC; work may start before, 0 = no turn; shared */
    uint32_t word;      /* futex; changes with every change of this entry; shared */
    uint32_t operators; /* how many may be under way at a time; shared */
    uint64_t reserved[5];
};

struct xpu_grant_page {
    uint32_t magic;
    uint32_t version;
    uint32_t cards;    /* entries used in card[] */
    uint32_t reserved0;
    int64_t beat_ns;   /* when flexnpud last was there, CLOCK_MONOTONIC; shared */
    uint64_t reserved[5];
    struct xpu_card_grant card[XPU_MAX_CARDS];
};

struct xpu_card_request {
    uint64_t using_turn; /* the turn in which this process may have work under way, 0 = none; shared */
    uint64_t launches;   /* operators started so far; shared */
    uint32_t wants;      /* not 0: it waits for a turn; shared */
    uint32_t reserved[3];
};

struct xpu_process_request {
    uint32_t pid; /* in the container's namespace; for people */
    uint32_t reserved[15];
    struct xpu_card_request card[XPU_MAX_CARDS];
};

struct xpu_request_page {
    uint32_t magic;
    uint32_t version;
    uint32_t slots_used; /* highest slot ever used + 1; shared */
    uint32_t reserved[13];
    struct xpu_process_request process[XPU_MAX_REQUESTS];
};

XPU_STATIC_ASSERT(sizeof(struct xpu_card_grant) == 64);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_grant, until_ns) == 8);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_grant, word) == 16);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_grant, operators) == 20);
XPU_STATIC_ASSERT(offsetof(struct xpu_grant_page, beat_ns) == 16);
XPU_STATIC_ASSERT(offsetof(struct xpu_grant_page, card) == 64);
XPU_STATIC_ASSERT(sizeof(struct xpu_grant_page) == 1088);
XPU_STATIC_ASSERT(sizeof(struct xpu_card_request) == 32);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_request, launches) == 8);
XPU_STATIC_ASSERT(offsetof(struct xpu_card_request, wants) == 16);
XPU_STATIC_ASSERT(offsetof(struct xpu_process_request, card) == 64);
XPU_STATIC_ASSERT(sizeof(struct xpu_process_request) == 576);
XPU_STATIC_ASSERT(offsetof(struct xpu_request_page, process) == 64);
XPU_STATIC_ASSERT(sizeof(struct xpu_request_page) == 36928);

#endif
