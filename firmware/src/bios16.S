# Real mode: the interrupt services that a kernel's setup code calls, and the way to it.
#
# Reached only by the 16-bit boot protocol. The code runs in the image, as segment 0xf000; its data,
# written by `real_mode.rs`, lies at REAL_MODE_DATA: count of memory map entries, the answers of
# int 15h E801 (AX, BX) and 88h (AX), a word each, then the entries of 20 bytes.
#
# Source: Ralf Brown's Interrupt List for the services; Linux, arch/x86/boot, for what is called.

.set FLAG_CARRY, 1 << 0
.set FLAG_ZERO, 1 << 6
.set DATA_SEGMENT, {REAL_MODE_DATA} >> 4
.set DATA_COUNT, 0
.set DATA_E801_AX, 2
.set DATA_E801_BX, 4
.set DATA_88_AX, 6
.set DATA_ENTRIES, 8
.set ENTRY_SIZE, 20
.set SMAP, 0x534d4150

.section .bios16, "ax"
.code16

# Stacked flags of the caller, seen from a handler that has pushed BP and set it to SP.
.set CALLER_FLAGS, 6

int_fail:
    push %bp
    mov %sp, %bp
    orw $FLAG_CARRY, CALLER_FLAGS(%bp)
    pop %bp
int_nothing:
    iretw

int_success:
    push %bp
    mov %sp, %bp
    andw $~FLAG_CARRY, CALLER_FLAGS(%bp)
    pop %bp
    iretw

# int 10h: teletype output to COM1, cursor at 0,0; every other call leaves the registers alone,
# which says that there is no display.
int_10:
    cmp $0x0e, %ah
    je 1f
    cmp $0x03, %ah
    jne int_nothing
    xor %cx, %cx
    xor %dx, %dx
    iretw
1:  push %ax
    push %cx
    push %dx
    mov %al, %ah
    # A port that is not there never gets ready: give up after 64 Ki polls.
    xor %cx, %cx
    mov $({COM1} + 5), %dx
2:  in %dx, %al
    test $0x20, %al
    loopz 2b
    mov %ah, %al
    mov ${COM1}, %dx
    out %al, %dx
    pop %dx
    pop %cx
    pop %ax
    iretw

# int 11h: equipment, none.
int_11:
    xor %ax, %ax
    iretw

# int 12h: KiB of base memory.
int_12:
    mov $({EBDA} >> 10), %ax
    iretw

# int 15h: memory maps, old and new.
int_15:
    cmp $0xe820, %ax
    je int_15_e820
    cmp $0xe801, %ax
    je int_15_e801
    cmp $0x88, %ah
    je int_15_88
    mov $0x86, %ah
    jmp int_fail

int_15_88:
    push %ds
    push $DATA_SEGMENT
    pop %ds
    mov DATA_88_AX, %ax
    pop %ds
    jmp int_success

int_15_e801:
    push %ds
    push $DATA_SEGMENT
    pop %ds
    mov DATA_E801_AX, %ax
    mov DATA_E801_BX, %bx
    pop %ds
    mov %ax, %cx
    mov %bx, %dx
    jmp int_success

int_15_e820:
    cmp $SMAP, %edx
    jne int_fail
    cmp $ENTRY_SIZE, %ecx
    jb int_fail
    push %ds
    push $DATA_SEGMENT
    pop %ds
    movzwl DATA_COUNT, %eax
    cmp %eax, %ebx
    jae 1f
    push %si
    push %di
    imul $ENTRY_SIZE, %bx, %si
    add $DATA_ENTRIES, %si
    mov $(ENTRY_SIZE / 2), %cx
    cld
    rep movsw
    pop %di
    pop %si
    inc %ebx
    cmp %eax, %ebx
    jb 2f
    # The last entry: no continuation.
    xor %ebx, %ebx
2:  pop %ds
    mov $SMAP, %eax
    mov $ENTRY_SIZE, %ecx
    jmp int_success
1:  pop %ds
    jmp int_fail

# int 16h: no keyboard. A wait for a key gets Enter at once, a look for one finds none.
int_16:
    test $0x01, %ah
    jnz 1f
    test $0x0e, %ah
    jnz int_nothing
    mov $0x1c0d, %ax
    iretw
1:  push %bp
    mov %sp, %bp
    orw $FLAG_ZERO, CALLER_FLAGS(%bp)
    pop %bp
    iretw

# int 1Ah: midnight, for ever; no other clock.
int_1a:
    test %ah, %ah
    jnz int_fail
    xor %cx, %cx
    xor %dx, %dx
    xor %al, %al
    iretw

# From 16-bit protected mode: sets up the vectors, and enters the setup code.
# On entry: DI = segment of the setup code, SI = its stack pointer.
real_mode:
    lidtl %cs:(real_mode_idt - {BIOS_START})
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7000, %sp
    mov $256, %cx
    xor %bx, %bx
1:  movw $(int_fail - {BIOS_START}), (%bx)
    movw ${BIOS_SEGMENT}, 2(%bx)
    add $4, %bx
    loop 1b
.macro vector number, handler
    movw $(\handler - {BIOS_START}), (4 * \number)
.endm
    # Hardware interrupts: none is enabled; one that comes all the same does nothing.
.irp number, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f
    vector \number, int_nothing
.endr
.irp number, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77
    vector \number, int_nothing
.endr
    vector 0x10, int_10
    vector 0x11, int_11
    vector 0x12, int_12
    vector 0x15, int_15
    vector 0x16, int_16
    vector 0x1a, int_1a
    # The 16-bit boot protocol: all data segments are the setup code's, entry is 0x20 paragraphs in.
    mov %di, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    movzwl %si, %esp
    add $0x20, %ax
    push %ax
    push $0
    lretw

.balign 4
real_mode_idt:
    .short 0x3ff
    .long 0
