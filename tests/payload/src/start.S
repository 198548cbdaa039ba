# The payload's bzImage header and its four entries.
#
# Source: Linux, Documentation/arch/x86/boot.rst. Protocol 2.12: the first with a 64-bit entry.

.section .setup, "a"
    .fill 0x1f1, 1, 0
    .byte 1                     # setup_sects
    .short 0                    # root_flags
    .long 0                     # syssize
    .short 0                    # ram_size
    .short 0xffff               # vid_mode
    .short 0                    # root_dev
    .short 0xaa55               # boot_flag
    .byte 0xeb, 0x66            # jump, whose second byte ends the header at 0x268
    .ascii "HdrS"
    .short 0x020c               # version
    .long 0                     # realmode_swtch
    .short 0                    # start_sys_seg
    .short 0                    # kernel_version
    .byte 0                     # type_of_loader
    .byte 1                     # loadflags: LOADED_HIGH
    .short 0                    # setup_move_size
    .long LOAD_ADDRESS          # code32_start
    .long 0, 0                  # ramdisk_image, ramdisk_size
    .long 0                     # bootsect_kludge
    .short 0                    # heap_end_ptr
    .short 0                    # ext_loader_ver, ext_loader_type
    .long 0                     # cmd_line_ptr
    .long 0x7fffffff            # initrd_addr_max
    .long 0x1000                # kernel_alignment
    .byte 0, 12                 # relocatable_kernel, min_alignment
    .short 1                    # xloadflags: XLF_KERNEL_64
    .long 2047                  # cmdline_size
    .long 0                     # hardware_subarch
    .quad 0                     # hardware_subarch_data
    .long 0, 0                  # payload_offset, payload_length
    .quad 0                     # setup_data
    .quad LOAD_ADDRESS          # pref_address
    .long init_size             # init_size
    .long 0                     # handover_offset

# The 16-bit entry: the jump at 0x200 leads here. Like Linux's setup code it makes a zero page of
# its own from the header and from what the BIOS says, and goes on by the 32-bit entry.
.code16
.set SETUP_PAGE, 0x4000         # the zero page, in our segment
.set REAL_STATE, SETUP_PAGE     # its first bytes: what we found (`struct RealState` in facts.rs)
.set SMAP, 0x534d4150
entry_16:
    mov %cs, %bx
    mov %ds, %dx
    pushfw
    pop %bp
    cld
    # All but the stack, below which nothing of ours lies, is addressed from our segment.
    xor %eax, %eax
    mov $SETUP_PAGE, %di
    mov $1024, %cx
    rep stosl
    movb $16, REAL_STATE
    mov %bx, REAL_STATE + 2
    mov %dx, REAL_STATE + 4
    mov %es, REAL_STATE + 6
    mov %ss, REAL_STATE + 8
    mov %fs, REAL_STATE + 10
    mov %gs, REAL_STATE + 12
    mov %sp, REAL_STATE + 14
    mov %bp, REAL_STATE + 16
    mov $0x1f1, %si
    mov $(SETUP_PAGE + 0x1f1), %di
    mov $(0x268 - 0x1f1), %cx
    rep movsb
    int $0x12
    mov %ax, REAL_STATE + 18
    mov $0xe801, %ax
    int $0x15
    mov %ax, REAL_STATE + 20
    mov %bx, REAL_STATE + 22
    mov $0x88, %ah
    int $0x15
    mov %ax, REAL_STATE + 24
    # A call that no BIOS has: it must fail and come back.
    mov $0x7777, %ax
    int $0x15
    setc REAL_STATE + 26
    mov $0x0100, %ax            # int 16h: is there a key?
    int $0x16
    setz REAL_STATE + 27
    mov $0x0e2e, %ax            # int 10h: a dot
    int $0x10
    mov $(SETUP_PAGE + 0x2d0), %di
    xor %ebx, %ebx
1:  mov $0xe820, %eax
    mov $20, %ecx
    mov $SMAP, %edx
    int $0x15
    jc 2f
    cmp $SMAP, %eax
    jne 2f
    incb SETUP_PAGE + 0x1e8
    add $20, %di
    test %ebx, %ebx
    jnz 1b
2:  cli
    xor %esi, %esi
    mov 0x214, %edi             # code32_start
    mov %ds, %si
    shl $4, %esi
    lea setup_gdt(%esi), %eax
    mov %eax, setup_gdt_pointer + 2
    add $SETUP_PAGE, %esi
    lgdtl setup_gdt_pointer
    mov $1, %eax
    mov %eax, %cr0
    mov $0x18, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %edi, %eax
    xor %ebx, %ebx
    xor %ebp, %ebp
    xor %edi, %edi
    # A far jump to an address in a register: by the stack, whose base is flat now.
    mov $0x7000, %esp
    pushl $0x10
    push %eax
    lretl
.balign 8
setup_gdt:
    .quad 0
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
setup_gdt_pointer:
    .short setup_gdt_pointer - setup_gdt - 1
    .long 0
    .balign 1024, 0

# The registers as the loader left them: `struct EntryState` in main.rs, built downwards on our
# stack. All entries push the same thirteen quadwords in the same order.

.section .entry, "ax"
.code32
entry_32:
    movl $32, entry_taken
save_32:
    mov %esp, loader_stack
    mov $stack_top, %esp
    # A quadword is its zero upper half first, then the lower.
    pushl $0
    pushf
    pushl $0
    push %esi
    pushl $0
    push %edi
    pushl $0
    push %ebp
    pushl $0
    push %ebx
    # By a register: a push of a selector itself may leave the upper half of its word as it was.
    mov %cs, %eax
    pushl $0
    push %eax
    mov %ds, %eax
    pushl $0
    push %eax
    mov %es, %eax
    pushl $0
    push %eax
    mov %ss, %eax
    pushl $0
    push %eax
    mov %cr0, %eax
    pushl $0
    push %eax
    mov %cr4, %eax
    pushl $0
    push %eax
    mov $0xc0000080, %ecx       # EFER
    rdmsr
    push %edx
    push %eax
    pushl $0
    pushl entry_taken
    mov %esp, %ebx
    # Long mode by our own tables.
    cld
    mov $pml4, %eax
    mov %eax, %cr3
    mov $(1 << 5), %eax         # PAE
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    mov $(1 << 8), %eax         # LME
    xor %edx, %edx
    wrmsr
    mov $0x80000011, %eax       # PG, ET, PE
    mov %eax, %cr0
    # The loader's GDT stays for the segments it promised; code needs a 64-bit descriptor.
    sgdt loader_gdt
    lgdt own_gdt_pointer
    ljmp $0x08, $common

.org 0x200
.code64
.globl entry_64
entry_64:
    mov %rsp, loader_stack
    mov $stack_top, %rsp
    pushf
    push %rsi
    push %rdi
    push %rbp
    push %rbx
    mov %cs, %rax
    push %rax
    mov %ds, %rax
    push %rax
    mov %es, %rax
    push %rax
    mov %ss, %rax
    push %rax
    mov %cr0, %rax
    push %rax
    mov %cr4, %rax
    push %rax
    mov $0xc0000080, %ecx       # EFER
    rdmsr
    shl $32, %rdx
    or %rdx, %rax
    push %rax
    pushq $64                   # the entry taken
    mov %rsp, %rbx
    cld
    sgdt loader_gdt
    # From here on all entries run on the same tables.
    mov $pml4, %eax
    mov %rax, %cr3
    lgdt own_gdt_pointer
    pushq $0x08
    pushq $common
    lretq

common:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $bss_start, %edi
    mov $bss_end, %ecx
    sub %edi, %ecx
    shr $3, %ecx
    xor %eax, %eax
    rep stosq
    mov %ebx, %edi
    mov $loader_gdt, %esi
    mov %ebx, %esp
    and $-16, %rsp
    call payload_main
    ud2

# The PVH entry, in 32-bit mode too; the ELF file's note names it.
.code32
entry_pvh:
    movl ${ENTRY_PVH}, entry_taken
    jmp save_32
.code64

# payload_triple_fault: an exception without a handler, twice.
.globl payload_triple_fault
payload_triple_fault:
    lidt no_idt
    ud2

.section .data, "aw"
.balign 8
loader_gdt:
    .fill 10, 1, 0
.balign 8
loader_stack:
    .quad 0
entry_taken:
    .long 0
no_idt:
    .fill 10, 1, 0
.balign 8
own_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 64-bit code
    .quad 0x00cf93000000ffff    # data
own_gdt_pointer:
    .short own_gdt_pointer - own_gdt - 1
    .quad own_gdt

# The first 4 GiB in 2 MiB pages: an initrd may lie anywhere below.
.section .page_tables, "aw"
.balign 4096
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad directories + 0x0003
    .quad directories + 0x1003
    .quad directories + 0x2003
    .quad directories + 0x3003
    .fill 508, 8, 0
directories:
    .set page, 0
    .rept 2048
    .quad page + 0x83
    .set page, page + 0x200000
    .endr

# XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h): the 32-bit address of the PVH entry.
.section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long entry_pvh
