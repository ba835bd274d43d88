/* SPDX-License-Identifier: 0BSD */
/* Numbers that assembler and C share. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define CODE32_SELECTOR 0x08
#define CODE_SELECTOR 0x10
#define DATA_SELECTOR 0x18
#define STACK_BYTES 16384

/* Where further CPUs start: a page below 1 MiB, of the loader's, who has no more use for it when they do. */
#define AP_START 0x8000

#endif
