/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The few functions of DCMI (libdcmi.so of the driver) that are called here, by dlsym; all return 0 on success.
 */
#ifndef XPU_ASCEND_DCMI_H
#define XPU_ASCEND_DCMI_H

#include <stdint.h>

#define XPU_DCMI_VDIE 1

struct xpu_dcmi_die {
    uint32_t word[5];
};

/* A die id as text, which is how a chip is named everywhere here: "%08X-%08X-%08X-%08X-%08X". */
#define XPU_DIE_FORMAT "%08X-%08X-%08X-%08X-%08X"

struct xpu_dcmi_memory {
    unsigned long long size_mb;
    unsigned long long available_mb;
    unsigned int frequency;
    unsigned long hugepage_kb;
    unsigned long hugepages;
    unsigned long hugepages_free;
    unsigned int utilisation;
    unsigned char reserved[60];
};

struct xpu_dcmi_hbm {
    unsigned long long size_mb;
    unsigned int frequency;
    unsigned long long used_mb;
    int temperature;
    unsigned int bandwidth;
};

typedef int (*xpu_dcmi_init)(void);
typedef int (*xpu_dcmi_get_card_list)(int* count, int* cards, int most);
typedef int (*xpu_dcmi_get_device_num_in_card)(int card, int* count);
typedef int (*xpu_dcmi_get_device_die_v2)(int card, int device, int kind, struct xpu_dcmi_die* die);
typedef int (*xpu_dcmi_get_device_memory_info_v3)(int card, int device, struct xpu_dcmi_memory* memory);
typedef int (*xpu_dcmi_get_device_hbm_info)(int card, int device, struct xpu_dcmi_hbm* memory);
typedef int (*xpu_dcmi_get_device_logicid_from_phyid)(unsigned physical, unsigned* logical);
typedef int (*xpu_dcmi_get_card_id_device_id_from_logicid)(int* card, int* device, unsigned logical);

#endif
