#![expect(clippy::cast_possible_truncation, reason = "what is packed here is small")]

use std::io::Write;

use ::tar::{Builder, EntryType, Header};
use flate2::write::{DeflateEncoder, GzEncoder};
use flate2::{Compression, Crc};

use super::super::tree::{Limits, Node};
use super::*;

fn limits() -> Limits {
    Limits { bytes_max: 64 << 20, archive_bytes: None }
}

fn unpacked(bytes: &[u8], limits: Limits) -> Result<Tree, ArchiveError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut tree = Tree::new(&std::env::temp_dir(), limits).unwrap();
    unpack(file, &mut tree, &AtomicBool::new(false)).map(|()| tree)
}

fn refused(bytes: &[u8]) -> String {
    unpacked(bytes, limits()).unwrap_err().to_string()
}

/// A header whose name is written as it is: the library would refuse what is tried here.
fn header(name: &str, kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, content) in files {
        tar.append(&header(name, EntryType::Regular, content.len()), content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Name, mode with type (0: not from Unix), content.
type Zipped<'a> = (&'a str, u32, &'a [u8]);

/// As others write them, but for names that they would refuse.
fn zip_of(files: &[Zipped<'_>], is_wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, mode, content) in files {
        let mut crc = Crc::new();
        crc.update(content);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        let packed = encoder.finish().unwrap();
        let at = out.len() as u32;
        let half = |value: usize| (value as u16).to_le_bytes();
        let word = |value: usize| (value as u32).to_le_bytes();
        let middle = |packed: usize, unpacked: usize| {
            [&half(8)[..], &[0; 4], &word(crc.sum() as usize), &word(packed), &word(unpacked)].concat()
        };
        out.extend(
            [
                &b"PK\x03\x04"[..],
                &half(20),
                &half(0),
                &middle(packed.len(), content.len()),
                &half(name.len()),
                &half(0),
                name.as_bytes(),
                &packed,
            ]
            .concat(),
        );
        let extra: Vec<u8> = if is_wide {
            [&half(1)[..], &half(16), &(content.len() as u64).to_le_bytes(), &(packed.len() as u64).to_le_bytes()]
                .concat()
        } else {
            Vec::new()
        };
        let sizes = if is_wide { (u32::MAX as usize, u32::MAX as usize) } else { (packed.len(), content.len()) };
        let made_by = [20, if *mode == 0 { 0 } else { 3 }];
        directory.extend(
            [
                &b"PK\x01\x02"[..],
                &made_by,
                &half(20),
                &half(0),
                &middle(sizes.0, sizes.1),
                &half(name.len()),
                &half(extra.len()),
                &half(0),
                &half(0),
                &half(0),
                &word((*mode as usize) << 16),
                &word(at as usize),
                name.as_bytes(),
                &extra,
            ]
            .concat(),
        );
    }
    let (at, len) = (out.len(), directory.len());
    out.extend(directory);
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    for value in [files.len() as u16, files.len() as u16] {
        end.extend(value.to_le_bytes());
    }
    end.extend((len as u32).to_le_bytes());
    end.extend((at as u32).to_le_bytes());
    end.extend([0, 0]);
    out.extend(end);
    out
}

fn text(tree: &Tree, name: &str) -> String {
    tree.text(name, 1 << 20).unwrap().unwrap()
}

#[test]
fn each_kind_is_told_by_its_first_bytes() {
    let tar = tar_of(&[("top/a", "1"), ("top/b/c", "2")]);
    let zip = [("top/a", 0o100_644, &b"1"[..]), ("top/b/c", 0, b"2")];
    for bytes in [&tar, &gzip(&tar), &zstd(&tar), &zip_of(&zip, false), &zip_of(&zip, true)] {
        let tree = unpacked(bytes, limits()).unwrap();
        assert_eq!((text(&tree, "top/a"), text(&tree, "top/b/c")), ("1".to_owned(), "2".to_owned()));
    }
    // Two streams, one after the other, as parallel packers write.
    let (first, second) = tar.split_at(512);
    assert_eq!(text(&unpacked(&[gzip(first), gzip(second)].concat(), limits()).unwrap(), "top/a"), "1");
    assert_eq!(unpacked(&zip_of(&[], false), limits()).unwrap().nodes().len(), 0);
}

#[test]
fn what_is_no_archive_is_refused_in_words() {
    assert!(refused(b"").contains("no archive"));
    assert!(refused(b"FROM alpine\n").contains("no archive"));
    assert!(refused(b"<!doctype html><html>").contains("web page"));
    assert!(refused(b"BZh9rest").contains("bzip2"));
    assert!(refused(&gzip(b"no tar")).contains("broken"));
    let tar = tar_of(&[("a", "content")]);
    assert!(refused(&gzip(&tar)[..40]).contains("broken"));
    assert!(refused(&tar[..700]).contains("broken"));
    let zip = zip_of(&[("a", 0, b"content")], false);
    assert!(refused(&zip[..zip.len() - 1]).contains("broken"));
    let mut flipped = zip.clone();
    flipped[32] ^= 1;
    assert!(refused(&flipped).contains("broken"));
}

#[test]
fn what_would_land_elsewhere_is_refused() {
    for bad in ["../evil", "/etc/evil", "a/../../evil"] {
        assert!(refused(&tar_of(&[(bad, "x")])).contains("the name"), "{bad}");
        assert!(refused(&gzip(&tar_of(&[(bad, "x")]))).contains("the name"), "{bad}");
        assert!(refused(&zip_of(&[(bad, 0, b"x")], false)).contains("the name"), "{bad}");
    }
    let mut tar = Builder::new(Vec::new());
    let mut link = header("link", EntryType::Symlink, 0);
    link.set_link_name("/etc").unwrap();
    link.set_cksum();
    tar.append(&link, std::io::empty()).unwrap();
    tar.append(&header("link/passwd", EntryType::Regular, 1), &b"x"[..]).unwrap();
    assert!(refused(&tar.into_inner().unwrap()).contains("below"));
    assert!(refused(&zip_of(&[("link", 0o120_777, b"/etc"), ("link/passwd", 0, b"x")], false)).contains("below"));
    let mut tar = Builder::new(Vec::new());
    let mut hard = header("hard", EntryType::Link, 0);
    hard.set_link_name("../../etc/passwd").unwrap();
    hard.set_cksum();
    tar.append(&hard, std::io::empty()).unwrap();
    assert!(refused(&tar.into_inner().unwrap()).contains("the name"));
}

#[test]
fn modes_links_and_long_names_come_through_and_devices_do_not() {
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
    let mut tar = Builder::new(Vec::new());
    let mut file = header("", EntryType::Regular, 1);
    tar.append_data(&mut file, &long, &b"x"[..]).unwrap();
    let mut link = header("", EntryType::Symlink, 0);
    tar.append_link(&mut link, "link", "t/arget").unwrap();
    tar.append(&header("device", EntryType::Char, 0), std::io::empty()).unwrap();
    let mut hard = header("hard", EntryType::Link, 0);
    hard.set_link_name("run").unwrap();
    hard.set_cksum();
    tar.append(&header("run", EntryType::Regular, 2), &b"#!"[..]).unwrap();
    tar.append(&hard, std::io::empty()).unwrap();
    tar.append_pax_extensions([("path", "päx".as_bytes())]).unwrap();
    tar.append(&header("short", EntryType::Regular, 1), &b"y"[..]).unwrap();
    let tree = unpacked(&tar.into_inner().unwrap(), limits()).unwrap();
    assert_eq!(text(&tree, &long), "x");
    assert_eq!(text(&tree, "päx"), "y");
    assert_eq!(text(&tree, "hard"), "#!");
    assert!(matches!(tree.nodes()["run"], Node::File { mode: 0o755, .. }));
    assert_eq!(tree.nodes()["link"], Node::Link { target: "t/arget".to_owned() });
    assert_eq!((tree.nodes().len(), tree.left_out), (5, 1));
    let zip = [
        ("run", 0o100_755, &b"#!"[..]),
        ("link", 0o120_777, b"run"),
        ("dir/", 0o040_700, b""),
        ("pipe", 0o010_644, b""),
    ];
    let tree = unpacked(&zip_of(&zip, false), limits()).unwrap();
    assert!(matches!(tree.nodes()["run"], Node::File { mode: 0o755, .. }));
    assert_eq!(tree.nodes()["link"], Node::Link { target: "run".to_owned() });
    assert_eq!(tree.nodes()["dir"], Node::Directory { mode: 0o700 });
    assert_eq!((tree.nodes().len(), tree.left_out), (3, 1));
}

#[test]
fn bombs_are_refused_with_the_limit_named() {
    let zeros = vec![0; 1 << 20];
    let mut tar = Builder::new(Vec::new());
    tar.append(&header("zeros", EntryType::Regular, zeros.len()), zeros.as_slice()).unwrap();
    let tar = tar.into_inner().unwrap();
    let small = Limits { bytes_max: 1000, archive_bytes: None };
    for bytes in [gzip(&tar), zstd(&tar), zip_of(&[("zeros", 0, &zeros)], false)] {
        let refused = unpacked(&bytes, small).unwrap_err().to_string();
        assert!(refused.contains("1000 bytes that this worker allows"), "{refused}");
    }
    // A name that is as long as a disk is not read.
    let mut tar = Builder::new(Vec::new());
    tar.append(&header("././@LongLink", EntryType::GNULongName, zeros.len()), zeros.as_slice()).unwrap();
    assert!(refused(&gzip(&tar.into_inner().unwrap())).contains("more than 65536 bytes"));
    // A directory of more entries than are taken is not read either.
    let mut zip = zip_of(&[("a", 0, b"")], false);
    let count_at = zip.len() - 12;
    zip[count_at..count_at + 2].copy_from_slice(&[0xfe, 0xff]);
    assert!(refused(&zip).contains("broken"));
}

#[test]
fn a_commit_that_an_archive_names_is_known() {
    let mut tar = Builder::new(Vec::new());
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let record = format!("52 comment={commit}\n");
    assert_eq!(record.len(), 52);
    tar.append(&header("pax_global_header", EntryType::XGlobalHeader, record.len()), record.as_bytes()).unwrap();
    tar.append(&header("a", EntryType::Regular, 0), std::io::empty()).unwrap();
    assert_eq!(unpacked(&tar.into_inner().unwrap(), limits()).unwrap().commit.as_deref(), Some(commit));
}
