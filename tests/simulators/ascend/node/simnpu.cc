// SPDX-License-Identifier: GPL-3.0-or-later
//
// simnpu: the simulated NPUs' referee; see ledger.h.
#include "ascend.h"
#include "ledger.h"

int main(int count, char** words) { return simgpu::run("simnpu", simascend::socket_path(), count, words); }
