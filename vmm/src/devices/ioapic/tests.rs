//! The I/O APIC as a guest and its devices see it.

use super::*;
use proptest::prelude::*;
use std::sync::Arc;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Seen>>);

type Seen = (Vec<Message>, Vec<Vec<u32>>);

impl Messages for Log {
    fn send(&self, message: Message) {
        self.0.lock().unwrap().0.push(message);
    }
    fn watch(&self, levels: &[(u32, Message)]) {
        self.0.lock().unwrap().1.push(levels.iter().map(|(pin, _)| *pin).collect());
    }
    fn pulse(&self, pin: u32) {
        panic!("an edge on pin {pin} of chips that are not under test");
    }
}

struct Board {
    ioapic: IoApic<Log>,
    log: Log,
}

fn board() -> Board {
    let log = Log::default();
    Board { ioapic: IoApic::new(log.clone()), log }
}

impl Board {
    fn program(&self, pin: u8, entry: u64) {
        for (half, value) in [(1, upper(entry)), (0, lower(entry))] {
            self.ioapic.write(SELECT, &[REDIRECTION + 2 * pin + half, 0, 0, 0]);
            self.ioapic.write(WINDOW, &value.to_le_bytes());
        }
    }

    fn read(&self, register: u8) -> u32 {
        self.ioapic.write(SELECT, &[register]);
        let mut data = [0; 4];
        self.ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn sent(&self) -> Vec<Message> {
        std::mem::take(&mut self.log.0.lock().unwrap().0)
    }
}

#[test]
fn it_has_24_pins_and_an_id() {
    let board = board();
    assert_eq!(board.read(VERSION), 0x0017_0020);
    board.ioapic.write(SELECT, &[ID]);
    board.ioapic.write(WINDOW, &[0, 0, 0, 0x2f]);
    assert_eq!(board.read(ID), 0x0f00_0000);
    assert_eq!(board.read(0x10), 0x1_0000, "masked after reset");
    assert_eq!(board.read(0x40), 0, "there is no pin 24");
}

#[test]
fn an_edge_is_sent_once() {
    let board = board();
    board.program(4, 0x0300_0000_0000_0000 | LOGICAL | 0x100 | 0x31);
    board.ioapic.pulse(4);
    let message = Message { address: 0xfee0_3004, data: 0x131 };
    assert_eq!(board.sent(), [message]);
    board.ioapic.set_level(4, true);
    board.ioapic.set_level(4, false);
    board.ioapic.end_of_interrupt(0x31);
    assert_eq!(board.sent(), [message]);
}

#[test]
fn an_edge_on_a_masked_pin_waits() {
    let board = board();
    board.program(4, MASKED | 0x31);
    board.ioapic.pulse(4);
    assert_eq!(board.sent(), []);
    board.program(4, 0x31);
    assert_eq!(board.sent().len(), 1);
    board.program(4, 0x31);
    assert_eq!(board.sent().len(), 0);
}

#[test]
fn a_level_fires_again_until_it_falls() {
    let board = board();
    board.program(9, LEVEL | 0x41);
    board.ioapic.set_level(9, true);
    board.ioapic.set_level(9, true);
    let message = Message { address: 0xfee0_0000, data: 0xc041 };
    assert_eq!(board.sent(), [message]);
    assert_eq!(board.read(REDIRECTION + 18) & lower(REMOTE_IRR), lower(REMOTE_IRR));
    board.ioapic.end_of_interrupt(0x40);
    assert_eq!(board.sent(), [], "another vector");
    board.ioapic.end_of_interrupt(0x41);
    assert_eq!(board.sent(), [message], "still high");
    board.ioapic.set_level(9, false);
    board.ioapic.write(EOI, &[0x41, 0, 0, 0]);
    assert_eq!(board.sent(), []);
    assert_eq!(board.read(REDIRECTION + 18), lower(LEVEL | 0x41));
}

#[test]
fn level_pins_are_watched_while_they_may_fire() {
    let board = board();
    board.program(4, 0x31);
    board.program(9, LEVEL | 0x41);
    board.program(9, LEVEL | 0x41);
    board.program(9, LEVEL | MASKED | 0x41);
    assert_eq!(board.log.0.lock().unwrap().1, [vec![9], vec![]]);
}

#[test]
fn a_guest_cannot_write_the_remote_irr() {
    let board = board();
    board.program(9, LEVEL | REMOTE_IRR | DELIVERY_STATUS | 0x41);
    assert_eq!(board.read(REDIRECTION + 18), lower(LEVEL | 0x41));
}

proptest! {
    #[test]
    fn no_access_makes_it_panic(
        accesses in prop::collection::vec(
            (prop_oneof![Just(SELECT), Just(WINDOW), Just(EOI), any::<u64>()],
             prop::collection::vec(any::<u8>(), 0..9), any::<u32>()), 0..60),
    ) {
        let board = board();
        for (offset, mut data, pin) in accesses {
            board.ioapic.write(offset, &data);
            board.ioapic.read(offset, &mut data);
            board.ioapic.pulse(pin % 32);
            board.ioapic.set_level(pin % 32, pin & 0x80 != 0);
        }
    }
}
