# Model-specific registers that all CPUs must have alike.

.set LOCAL_APIC_ICR, {LOCAL_APIC} + 0x300
# To all CPUs but this one, level asserted (Intel SDM volume 3, 11.6.1).
.set IPI_INIT, 0xc4500
.set IPI_STARTUP, 0xc4600
# How long CPUs have to answer, in units of 2^32 cycles, and a part of one: seconds on any CPU.
.set PATIENCE, 4

.section .bss, "aw", @nobits
.balign 4
answers:
    .long 0
list:
    .long 0

# An entry of a list: number, low and high half of the value, 32 bits each.
.macro write_listed pointer
1:  mov (\pointer), %ecx
    jecxz 2f
    mov 4(\pointer), %eax
    mov 8(\pointer), %edx
    wrmsr
    add $12, \pointer
    jmp 1b
2:
.endm

# Where the other CPUs start, in real mode, all at once. The next start is the kernel's affair.
.section .other_cpu, "ax"
.code16
other_cpu:
    xor %ax, %ax
    mov %ax, %ds
    mov list, %si
    write_listed %si
    lock incw answers
    cli
3:  hlt
    jmp 3b

# set_msrs(list, which ends with register 0: edi, count of other CPUs: esi) -> eax: how many other
# CPUs wrote the list; all-ones when this one refuses a value.
# To be called once.
.section .text.unlikely.set_msrs, "ax"
.code64
.globl set_msrs
set_msrs:
    lidt refusal_idt
    mov %rsp, %r8
    mov %edi, list
    write_listed %rdi
    lidt no_idt
    test %esi, %esi
    jz 5f
    # INIT and start-up; CPUs that need pauses between them, or the second again, are not found in
    # virtual machines.
    mov $LOCAL_APIC_ICR, %ecx
    movl $IPI_INIT, (%rcx)
    movl $(IPI_STARTUP + other_cpu_page), (%rcx)
    rdtsc
    lea PATIENCE + 1(%rdx), %edi
4:  pause
    cmp %esi, answers
    je 5f
    rdtsc
    cmp %edi, %edx
    jne 4b
5:  mov answers, %eax
    ret

# General protection, by a value that the CPU does not take.
refused:
    lidt no_idt
    mov %r8, %rsp
    or $-1, %eax
    ret

.section .rodata, "a"
.set GENERAL_PROTECTION, 13
# An interrupt gate; the table begins before it, where no other exception finds one.
.balign 8
refusal_gate:
    .short refused - {BIOS_START}, {BOOT_CS}, 0x8e00, {BIOS_START} >> 16
    .quad 0
refusal_idt:
    .short 16 * (GENERAL_PROTECTION + 1) - 1
    .quad refusal_gate - 16 * GENERAL_PROTECTION
