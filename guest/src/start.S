/* SPDX-License-Identifier: 0BSD */
/* Entry from the loader, interrupt entries, and the start of further CPUs. */
#include "layout.h"

/* Entered as a bzImage's 64-bit entry: long mode, interrupts off, rsi = boot_params, low 4 GiB mapped one to one. */
	.section .text.start, "ax"
	.code64
	.globl start64
start64:
	movq	%rsi, %rdi
	xorl	%esi, %esi
	/* rdi = boot_params or 0, rsi = hvm_start_info or 0. */
	.globl start_common
start_common:
	cli
	cld
	leaq	stack_top(%rip), %rsp
	lgdt	gdt_pointer(%rip)
	movl	$DATA_SELECTOR, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%ebx, %ebx
	movl	%ebx, %fs
	movl	%ebx, %gs
	pushq	$CODE_SELECTOR
	leaq	1f(%rip), %rax
	pushq	%rax
	lretq
1:	call	guest_main
2:	hlt
	jmp	2b

	.section .data.gdt, "aw"
	.balign 16
	.globl gdt
gdt:	.quad 0
	.quad 0x00cf9b000000ffff	/* 32-bit code, on the way of further CPUs to long mode */
	.quad 0x00af9b000000ffff	/* CODE_SELECTOR */
	.quad 0x00cf93000000ffff	/* DATA_SELECTOR */
gdt_end:
	.globl gdt_pointer
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt

	.section .bss.stack, "aw", @nobits
	.balign 4096
	.skip STACK_BYTES
stack_top:

/*
 * One entry for each vector: pushes an error code where the CPU does not, and the vector. Each is 16 bytes long, so that
 * the table of gates is made by counting.
 */
	.text
	.balign 16
	.globl interrupt_entries
interrupt_entries:
	vector = 0
	.rept 256
	.balign 16
	.if (vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 21)
	.else
	pushq	$0
	.endif
	pushq	$vector
	jmp	interrupt_common
	vector = vector + 1
	.endr
	.balign 16

interrupt_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rbx
	pushq	%rbp
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, %rdi		/* struct frame */
	cld
	call	interrupt
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rbp
	popq	%rbx
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

/*
 * A further CPU starts here in real mode, at AP_START below 1 MiB, whereto ap_code is copied. It goes to long mode with the page
 * tables and stack that ap_cr3 and ap_stack (in the copy) name, and calls ap_main.
 */
	.section .rodata.ap, "a"
	.code16
	.balign 16
	.globl ap_code, ap_code_end, ap_cr3, ap_stack
ap_code:
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	ap_gdt_pointer - ap_code
	movl	$0x20, %eax		/* CR4.PAE */
	movl	%eax, %cr4
	movl	ap_cr3 - ap_code, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	$0x80000011, %eax	/* CR0: PG, ET, PE */
	movl	%eax, %cr0
	ljmpl	$CODE_SELECTOR, $(AP_START + ap_long - ap_code)
	.code64
ap_long:
	movl	$DATA_SELECTOR, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movq	AP_START + ap_stack - ap_code, %rsp
	movq	$ap_main, %rax
	call	*%rax
1:	cli
	hlt
	jmp	1b
	.balign 8
ap_gdt_pointer:
	.word 4 * 8 - 1
	.long gdt
	.balign 8
ap_cr3:	.quad 0
ap_stack:
	.quad 0
ap_code_end:
	.section .note.GNU-stack, "", @progbits
