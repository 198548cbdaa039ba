//! Interrupts and their acknowledgements, as KVM passes them on.

use std::thread;

use super::*;

const USED: u32 = VIRTIO_MMIO_INT_VRING;
const CONFIG: u32 = VIRTIO_MMIO_INT_CONFIG;

fn interrupt() -> Interrupt {
    Interrupt::new("x", Arc::new(|| ()), Arc::new(Registers::unseen()))
}

fn status(interrupt: &Interrupt) -> u32 {
    interrupt.registers.get(VIRTIO_MMIO_INTERRUPT_STATUS)
}

/// The driver acknowledges used buffers.
fn acknowledge(interrupt: &Interrupt) {
    interrupt.acknowledgement().unwrap().happen();
}

#[test]
fn an_acknowledgement_takes_used_buffers_away_and_nothing_else() {
    let interrupt = interrupt();
    interrupt.used();
    interrupt.configuration_changed(Vec::new);
    assert_eq!(status(&interrupt), USED | CONFIG);
    acknowledge(&interrupt);
    assert!(!interrupt.settle());
    assert_eq!(status(&interrupt), CONFIG);
    interrupt.acknowledge(CONFIG);
    assert_eq!(status(&interrupt), 0);
}

#[test]
fn what_is_used_after_an_acknowledgement_stays() {
    let interrupt = interrupt();
    interrupt.used();
    acknowledge(&interrupt);
    interrupt.used();
    assert!(interrupt.settle(), "the driver has not seen it");
    assert_eq!(status(&interrupt), USED);
    acknowledge(&interrupt);
    assert!(!interrupt.settle());
}

#[test]
fn a_reset_forgets_an_acknowledgement() {
    let interrupt = interrupt();
    interrupt.used();
    acknowledge(&interrupt);
    interrupt.reset();
    assert_eq!(status(&interrupt), 0);
    interrupt.used();
    assert!(interrupt.settle());
}

#[test]
fn an_idle_device_settles_also_when_the_driver_is_slow() {
    for slowness in [0, 1, 5] {
        let interrupt = interrupt();
        let stop = Event::new().unwrap();
        let mut waiter = Waiter::new(&stop, &[]).unwrap();
        interrupt.used();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(SETTLE * slowness);
                acknowledge(&interrupt);
                while status(&interrupt) != 0 {
                    thread::yield_now();
                }
                stop.happen();
            });
            assert_eq!(wait(&mut waiter, &interrupt), Ok(false));
        });
        assert!(!interrupt.is_unsettled());
    }
}
