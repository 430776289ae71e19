// SPDX-License-Identifier: Apache-2.0
//
// No thread is cancelled in here. open(), read() and naps are cancellation points: a thread that
// died in one of ours would leave our locks behind, in calls that natively are no such points.
#ifndef XPU_UNCANCELLED_H
#define XPU_UNCANCELLED_H

#include <pthread.h>

namespace xpu {

class Uncancelled {
  public:
    Uncancelled() noexcept { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
    ~Uncancelled() {
        int ours = 0;
        pthread_setcancelstate(before_, &ours);
    }
    Uncancelled(const Uncancelled&) = delete;
    Uncancelled& operator=(const Uncancelled&) = delete;

  private:
    int before_ = PTHREAD_CANCEL_ENABLE;
};

} // namespace xpu
#endif
