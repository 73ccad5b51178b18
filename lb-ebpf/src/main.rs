//! snisplice's kernel programs, one file per hook.
#![no_std]
#![no_main]

mod packet;
mod sockmap;

/// What the kernel reads to open the GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: a path to a panic makes the verifier reject the program, for it cannot end the loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
