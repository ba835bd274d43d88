/* SPDX-License-Identifier: 0BSD */
/* The PVH entry: 32-bit protected mode without paging, ebx = hvm_start_info. Goes to long mode, then on as the other entry. */
#include "layout.h"

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18			/* name, description: bytes; XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start32

	.section .text.start, "ax"
	.code32
	.globl start32
start32:
	cli
	cld
	/* One to one, the first 4 GiB by 2 MiB pages. */
	movl	$pvh_tables, %edi
	movl	$(6 * 4096 / 4), %ecx
	xorl	%eax, %eax
1:	movl	%eax, (%edi)
	addl	$4, %edi
	decl	%ecx
	jnz	1b
	movl	$(pvh_tables + 0x1003), pvh_tables
	movl	$(pvh_tables + 0x2003), %eax
	movl	$(pvh_tables + 0x1000), %edi
	movl	$4, %ecx
2:	movl	%eax, (%edi)
	addl	$0x1000, %eax
	addl	$8, %edi
	decl	%ecx
	jnz	2b
	movl	$0x83, %eax		/* present, writable, 2 MiB */
	movl	$(pvh_tables + 0x2000), %edi
	movl	$2048, %ecx
3:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	decl	%ecx
	jnz	3b
	movl	$0x20, %eax
	movl	%eax, %cr4
	movl	$pvh_tables, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	$0x80000011, %eax
	movl	%eax, %cr0
	lgdtl	gdt_pointer
	ljmpl	$CODE_SELECTOR, $4f
	.code64
4:	xorl	%edi, %edi
	movl	%ebx, %esi
	jmp	start_common

	.section .bss.tables, "aw", @nobits
	.balign 4096
pvh_tables:
	.skip 6 * 4096
	.section .note.GNU-stack, "", @progbits
