//! The ROM image: what a VMM and a CPU rely on before the first instruction.

use regression::products::product;

#[test]
fn the_image_is_64_kib_and_starts_with_a_jump_at_the_reset_vector() {
    let image = std::fs::read(product("bios-microvm.bin")).unwrap();
    assert_eq!(image.len() as u64, abi::layout::BIOS_SIZE);
    let reset = &image[image.len() - 16..];
    assert!(matches!(reset[0], 0xe9 | 0xeb), "a relative jump, not {:#x}", reset[0]);
    assert!(reset[3..].iter().all(|byte| *byte == 0xff), "nothing behind it: {reset:02x?}");
}

#[test]
fn no_path_of_the_building_machine_is_in_the_image() {
    let image = std::fs::read(product("bios-microvm.bin")).unwrap();
    for word in [&b"/home/"[..], b"/root/", b".cargo/registry", b"/rustc/llvm"] {
        let found = image.windows(word.len()).any(|window| window == word);
        assert!(!found, "the image names {:?}", String::from_utf8_lossy(word));
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let root = std::fs::canonicalize(root).unwrap();
    let root = root.to_str().unwrap().as_bytes();
    assert!(!image.windows(root.len()).any(|window| window == root));
}
