#include <stdint.h>

/* What an ARM Cortex-M4 begins with: the stack, and code that turns the floating-point unit on. */
extern unsigned __stack;
extern void _start(void);

static void reset(void) {
    *(volatile unsigned *)0xE000ED88 |= 0xFu << 20;
    __asm volatile("dsb; isb");
    _start();
}

__attribute__((section(".vectors"), used)) static const uintptr_t vectors[] = {
    (uintptr_t)&__stack, (uintptr_t)reset};
