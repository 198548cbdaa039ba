# From the reset vector to Rust: sets up what Rust code needs, and nothing more.
#
# On entry (Intel SDM volume 3, 10.1.4; AMD APM volume 2, 14.1.3):
#   1. Real mode, caches off (CR0.CD and CR0.NW set), interrupts off.
#   2. CS.base = 0xffff0000, IP = 0xfff0: the image as it is mapped below 4 GiB. The other
#      segments have base 0.
#   3. Below 1 MiB, at BIOS_START, where the image is linked, there is RAM with the same bytes (a
#      microVM), their read-only alias (pc and q35), or RAM with anything (a host that maps the image
#      once). Nothing there is used before it is known; see `shadow`.
#   4. The contents of RAM are unknown: after a reset, what the last kernel left.
# On exit, at `rust_main`:
#   1. Long mode, the first GiB and the local APIC identity-mapped, CS = BOOT_CS, other segments =
#      BOOT_DS: what a 64-bit kernel asks for, so entering one needs no further switch.
#   2. .bss is zero, the stack is at DATA_END, interrupts are off.
#   3. The image at BIOS_START is RAM. EDI is the PCI host bridge's id where that took work, else 0.
#
# A kernel that restarts the machine "by the BIOS" jumps to the reset vector in real mode, with
# devices and CPU as they are (Linux does so on hardware-reduced ACPI). That is no reset, and the host
# must see one: `reset_machine`.
#
# No A20 gate: microVMs have none. No IDT: an exception is a bug, and a triple fault shows it.

.set CR0_PE, 1 << 0
.set CR0_MP, 1 << 1
.set CR0_ET, 1 << 4
.set CR0_NE, 1 << 5
.set CR0_WP, 1 << 16
.set CR0_PG, 1 << 31
.set CR4_PAE, 1 << 5
.set CR4_OSFXSR, 1 << 9
.set CR4_OSXMMEXCPT, 1 << 10
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8

# What `mark` holds in the image, in RAM once the firmware has started there, and in RAM when the
# image is to be fetched anew.
.set MARK_FRESH, 0x6d766d62
.set MARK_STARTED, 0x21766d62
.set MARK_STALE, 0

# A dword of PCI configuration space of 0:0.0 (PCI 3.0, 3.2.2.3.2).
.set PCI_ENABLE, 1 << 31
# PAM registers, 0:0.0 (82441FX datasheet, 3.2.17; 3 Series MCH datasheet, 5.1.16): the F-segment
# has the upper nibble of the first, the E-segment the sixth and seventh. 3 is RAM for reads and
# writes.
.set PAM_E_LOW, 5
.set PAM_E_HIGH, 6
.set PAM_RAM_F, 0x30
.set PAM_RAM_E, 0x33

.set PTE_PRESENT, 1 << 0
.set PTE_WRITABLE, 1 << 1
.set PTE_ACCESSED, 1 << 5
.set PTE_DIRTY, 1 << 6
.set PTE_UNCACHED, 1 << 4 | 1 << 3
.set PDE_2M, 1 << 7
# Accessed and dirty are set beforehand, so that the CPU never writes to the ROM.
.set TABLE, PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED
.set LEAF, TABLE | PTE_DIRTY | PDE_2M

# ---- 16-bit code, within reach of the reset vector's jump ----

.section .reset, "ax"
.code16
.globl reset_vector
reset_vector:
    jmp start16
    .balign 16, 0xff

.section .start16, "ax"
start16:
    cli
    # CS.base makes the offset of a linear address its low 16 bits.
    lgdtl %cs:(high_gdt_pointer - {BIOS_START})
    # The whole register: PE on, and CD and NW off with the same write.
    mov $(CR0_PE | CR0_ET), %eax
    mov %eax, %cr0
    ljmpl ${CODE32}, $(start32 + {ALIAS_TO_HIGH})

# ---- 32-bit protected mode, still in the mapping below 4 GiB ----

.section .start, "ax"
.code32
start32:
    mov ${BOOT_DS}, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    # Linux reads FS and GS as they are; null selectors would be legal only in long mode.
    mov %eax, %fs
    mov %eax, %gs
    xor %ebp, %ebp
    # A mark in the image shows whether it is there, whether it is RAM, and whether this is a second
    # entry: a host that has the image in RAM restores it when it resets the machine.
    cmpl $MARK_FRESH, mark
    jne not_fresh
    movl $MARK_STARTED, mark
    cmpl $MARK_STARTED, mark
    jne shadow
in_ram:
    lgdt gdt_pointer
    ljmpl ${CODE32}, $start32_low

# ---- 32-bit protected mode, in RAM below 1 MiB ----

start32_low:
    mov $pml4, %eax
    mov %eax, %cr3
    # The SSE bits cost nothing and forgive a compiler that uses SSE.
    mov $(CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT), %eax
    mov %eax, %cr4
    mov $MSR_EFER, %ecx
    mov $EFER_LME, %eax
    xor %edx, %edx
    wrmsr
    mov $(CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE), %eax
    mov %eax, %cr0
    ljmpl ${BOOT_CS}, $start64

# Running in the mapping below 4 GiB: the image is not, or not as RAM, at BIOS_START.
not_fresh:
    cmpl $MARK_STARTED, mark
    je reset_machine

# Makes RAM of the segments E and F where a chipset must be told, and copies there what the image
# uses. EBP becomes the host bridge's id: all-ones where there is no PCI.
shadow:
    mov $PCI_ENABLE, %eax
    mov ${PCI_ADDRESS}, %dx
    out %eax, %dx
    mov ${PCI_DATA}, %dx
    in %dx, %eax
    mov %eax, %ebp
    mov ${PAM_I440FX}, %ebx
    cmp ${ID_I440FX}, %eax
    je 1f
    mov ${PAM_Q35}, %ebx
    cmp ${ID_Q35}, %eax
    jne 2f
1:
.macro set_pam index, value
    lea \index(%ebx), %ecx
    mov %ecx, %eax
    and $~3, %eax
    or $PCI_ENABLE, %eax
    mov ${PCI_ADDRESS}, %dx
    out %eax, %dx
    and $3, %ecx
    lea {PCI_DATA}(%ecx), %edx
    mov $\value, %al
    out %al, %dx
.endm
    set_pam 0, PAM_RAM_F
    set_pam PAM_E_LOW, PAM_RAM_E
    set_pam PAM_E_HIGH, PAM_RAM_E
2:  cld
    mov $({BIOS_START} + {ALIAS_TO_HIGH}), %esi
    mov ${BIOS_START}, %edi
    mov $image_words, %ecx
    rep movsl
    mov $(start16 + {ALIAS_TO_HIGH}), %esi
    mov $start16, %edi
    mov $start16_words, %ecx
    rep movsl
    movl $MARK_STARTED, mark
    cmpl $MARK_STARTED, mark
    je in_ram
    # There is no RAM at BIOS_START, so nothing that could print.
    mov ${POST_FAILED}, %al
    out %al, ${POST}
    mov ${ERROR_NO_SHADOW}, %al
    out %al, ${DEBUG_EXIT}
3:  hlt
    jmp 3b

# Resets the machine by what it has: ACPI's reset register, the keyboard controller, or a CPU that
# cannot go on, which no host ignores.
reset_machine:
    # A chipset's reset may leave RAM at BIOS_START as it is: the next entry must be a first one.
    movl $MARK_STALE, mark
    movb ${GED_RESET_VALUE}, {GED_RESET}
    mov ${I8042_RESET}, %al
    out %al, ${I8042_COMMAND}
    lidt no_idt
    ud2

# ---- long mode ----

.code64
start64:
    mov $bss_start, %edi
    mov $bss_end, %ecx
    sub %edi, %ecx
    shr $3, %ecx
    xor %eax, %eax
    rep stosq
    mov $stack_end, %esp
    mov %ebp, %edi
    call rust_main
    ud2

# enter_64(entry: edi, boot_params: esi): never returns.
# Segments, GDT and identity map are already those of the 64-bit boot protocol.
.globl enter_64
enter_64:
    mov %edi, %eax
    jmp *%rax

# enter_32(entry: edi, esi, ebx: edx): never returns.
# Out of long mode by a compatibility-mode segment, then the GDT of the 32-bit boot protocol. Linux
# takes its zero page in ESI, a PVH kernel its start info in EBX.
.globl enter_32
enter_32:
    mov %edx, %ebx
    xor %edx, %edx
    # EDX: whether to go on to real mode.
leave_long_mode:
    push ${CODE32}
    push $compatibility
    lretq
.code32
compatibility:
    mov %edx, %ebp
    # PVH wants PE and nothing else that can be off.
    mov $(CR0_ET | CR0_PE), %eax
    mov %eax, %cr0
    mov $MSR_EFER, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    mov %eax, %cr4
    lgdt gdt32_pointer
    test %ebp, %ebp
    jz 1f
    ljmp ${CODE16}, $(protected_16 - {BIOS_START})
1:  ljmp ${BOOT_CS}, $protected
protected:
    mov ${BOOT_DS}, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov %edi, %eax
    xor %ebp, %ebp
    xor %edi, %edi
    jmp *%eax

.code16
protected_16:
    mov ${DATA16}, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov $CR0_ET, %eax
    mov %eax, %cr0
    ljmpw ${BIOS_SEGMENT}, $(real_mode - {BIOS_START})

# enter_16(segment of the setup code: edi, its stack pointer: esi): never returns.
# The same way down, then through 16-bit protected mode, so that segment limits are real mode's.
.code64
.globl enter_16
enter_16:
    mov $1, %edx
    jmp leave_long_mode

# ---- tables ----

.section .rodata, "a"
# Descriptors: base 0, limit 4 GiB; 0x9b is code, 0x93 data, both accessed already.
.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # CODE32
    .quad 0x00af9b000000ffff    # BOOT_CS, 64-bit
    .quad 0x00cf93000000ffff    # BOOT_DS
gdt32:
    .quad 0
    .quad 0x00009b0f0000ffff    # CODE16: base 0xf0000, limit 64 KiB
    .quad 0x00cf9b000000ffff    # BOOT_CS, 32-bit
    .quad 0x00cf93000000ffff    # BOOT_DS
    .quad 0x000093000000ffff    # DATA16: base 0, limit 64 KiB
gdt_pointer:
    .short gdt32 - gdt - 1
    .long gdt
high_gdt_pointer:
    .short gdt32 - gdt - 1
    .long gdt + {ALIAS_TO_HIGH}
# As 64-bit code reads it too: a CPU refuses a base that is no address.
no_idt:
    .short 0
    .quad 0
.balign 4
mark:
    .long MARK_FRESH
gdt32_pointer:
    .short gdt_pointer - gdt32 - 1
    .long gdt32

# The first GiB in 2 MiB pages, and the page with the local APIC. 1 GiB pages would save one table,
# but not every host has them.
.set LOCAL_APIC_PAGE, ({LOCAL_APIC} >> 21) & 511
.if {LOCAL_APIC} >> 30 != 3
.error "the local APIC is not in the fourth GiB"
.endif
.section .page_tables, "a"
pml4:
    .quad pdpt + TABLE
    .fill 511, 8, 0
pdpt:
    .quad page_directory + TABLE
    .fill 2, 8, 0
    # The fourth GiB has no page directory of its own: this table is it, with one page.
    .quad pdpt + TABLE
    .fill LOCAL_APIC_PAGE - 4, 8, 0
    .quad {LOCAL_APIC} + LEAF + PTE_UNCACHED
    .fill 511 - LOCAL_APIC_PAGE, 8, 0
page_directory:
    .set page, 0
    .rept 512
    .quad page + LEAF
    .set page, page + 0x200000
    .endr
