//! On a real disk: there after a restart, gone after a purge, and bounded.

use super::*;
use crate::cache::store::choices::prefix;
use std::{fs, path::Path};

const KEY: &str = "http://shop:80/products/1\nG\nSx";
const OTHER: &str = "http://shop:80/carts/1\nG\nSx";

fn on_disk(bytes: u64) -> CacheRules {
    let tiers = CacheTierRules { disk: Some(bytes), ..CacheTierRules::default() };
    CacheRules { id: "shop/pages".into(), tiers, ..CacheRules::default() }
}

async fn sidecar(dir: &Path) -> Sidecar {
    let sidecar = Sidecar::new(&on_disk(16 << 20), Some(dir.to_owned()));
    opened(&sidecar).await;
    sidecar
}

async fn opened(sidecar: &Sidecar) {
    eventually(|| disk(sidecar).is_open()).await;
}

fn disk(sidecar: &Sidecar) -> &Disk {
    sidecar.farther.disk.as_ref().expect("has a disk")
}

/// Ends a sidecar as a shutdown does.
async fn end(sidecar: Sidecar) {
    tokio::task::spawn_blocking(move || drop(sidecar)).await.expect("it ends");
}

#[tokio::test]
async fn what_is_kept_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("has a directory");
    let first = sidecar(dir.path()).await;
    assert!(!first.finds(KEY).await);
    first.farther.keep(&new_answer(KEY, "", "hello"));
    first.farther.keep(&new_answer(OTHER, "accept=a\n", "variant"));
    first.given(Tier::Disk, Given::Kept, 2).await;
    let found = first.found(KEY, &[]).await;
    assert_eq!((found.bytes(), found.brought()), (Bytes::from("hello"), Some(Tier::Disk)));
    end(first).await;
    let second = sidecar(dir.path()).await;
    let found = second.found(KEY, &[]).await;
    assert_eq!((found.bytes(), found.times().lifetime), (Bytes::from("hello"), 60));
    second.found(OTHER, &[("accept", "a")]).await;
    assert!(second.look_up(OTHER, &[("accept", "b")]).await.is_none());
}

#[tokio::test]
async fn a_purge_holds_after_a_restart() {
    type Purge<'a> = &'a dyn Fn(&Sidecar);
    let purges: [(&str, Purge<'_>); 4] = [
        ("URI", &|sidecar| sidecar.farther.purge_uri(b"http://shop:80/products/1\n")),
        ("prefix", &|sidecar| sidecar.farther.purge(&prefix(b"http://shop:80/products"))),
        ("tag", &|sidecar| sidecar.farther.purge(&What::Tag((*b"t").into()))),
        ("all", &|sidecar| sidecar.farther.purge(&What::All)),
    ];
    for (what, purge) in purges {
        let dir = tempfile::tempdir().expect("has a directory");
        let first = sidecar(dir.path()).await;
        first.farther.keep(&new_answer(KEY, "", "hello"));
        first.farther.keep(&new_answer(OTHER, "", "other"));
        first.given(Tier::Disk, Given::Kept, 2).await;
        first.found(KEY, &[]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        purge(&first);
        assert!(!first.finds(KEY).await, "{what}: at once");
        // What was asked for before it does not come back by being written after it.
        first.farther.keep(&old_answer(KEY, "asked for before"));
        eventually(|| {
            let gifts = |came| first.metrics.gifts(Tier::Disk, came);
            gifts(Given::Kept) + gifts(Given::Purged) >= 3
        })
        .await;
        assert!(!first.finds(KEY).await, "{what}: what was on its way");
        eventually(|| first.farther.is_settled()).await;
        end(first).await;
        let second = sidecar(dir.path()).await;
        assert!(!second.finds(KEY).await, "{what}: after a restart");
        if matches!(what, "URI" | "prefix") {
            second.found(OTHER, &[]).await;
        } else {
            assert!(!second.finds(OTHER).await, "{what}: it is for others too");
        }
    }
}

#[tokio::test]
async fn a_purge_before_the_files_are_open_holds_too() {
    let dir = tempfile::tempdir().expect("has a directory");
    let first = sidecar(dir.path()).await;
    first.farther.keep(&new_answer(KEY, "", "hello"));
    first.given(Tier::Disk, Given::Kept, 1).await;
    end(first).await;
    let second = Sidecar::new(&on_disk(16 << 20), Some(dir.path().to_owned()));
    second.farther.purge_uri(KEY.as_bytes());
    opened(&second).await;
    assert!(!second.finds(KEY).await);
}

#[tokio::test]
async fn only_one_uses_a_directory() {
    let dir = tempfile::tempdir().expect("has a directory");
    let first = sidecar(dir.path()).await;
    let second = Sidecar::new(&on_disk(16 << 20), Some(dir.path().to_owned()));
    second.given(Tier::Disk, Given::Error, 1).await;
    first.farther.keep(&new_answer(KEY, "", "hello"));
    first.given(Tier::Disk, Given::Kept, 1).await;
    first.found(KEY, &[]).await;
    assert!(!second.finds(KEY).await);
    second.farther.keep(&new_answer(KEY, "", "hello"));
    second.given(Tier::Disk, Given::Dropped, 1).await;
}

#[tokio::test]
async fn damage_is_no_more_than_a_miss() {
    let dir = tempfile::tempdir().expect("has a directory");
    let first = sidecar(dir.path()).await;
    for i in 0..50 {
        first.farther.keep(&new_answer(&format!("http://shop:80/{i}\nG"), "", &"x".repeat(i * 100)));
    }
    first.given(Tier::Disk, Given::Kept, 50).await;
    end(first).await;
    let folder =
        fs::read_dir(dir.path()).expect("is there").next().expect("has one").expect("is read").path();
    for file in fs::read_dir(&folder).expect("is there").flat_map(|entry| {
        let path = entry.expect("is read").path();
        if path.is_dir() {
            fs::read_dir(path).expect("is there").map(|entry| entry.expect("is read").path()).collect()
        } else {
            Vec::new()
        }
    }) {
        let mut bytes = fs::read(&file).expect("is there");
        for at in (700..bytes.len()).step_by(1013) {
            bytes[at] ^= 0x55;
        }
        fs::write(&file, bytes).expect("is written");
    }
    let second = sidecar(dir.path()).await;
    for i in 0..50 {
        let key = format!("http://shop:80/{i}\nG");
        if let Some(found) = second.look_up(&key, &[]).await {
            assert_eq!(found.bytes(), "x".repeat(i * 100));
        }
    }
    second.farther.keep(&new_answer(KEY, "", "hello"));
    second.given(Tier::Disk, Given::Kept, 1).await;
    second.found(KEY, &[]).await;
    end(second).await;
    // A journal that cannot be read: everything begins anew.
    fs::write(folder.join("purges"), "something else").expect("is written");
    let third = sidecar(dir.path()).await;
    assert!(!third.finds(KEY).await);
}

#[tokio::test]
async fn it_takes_no_more_than_it_may() {
    let dir = tempfile::tempdir().expect("has a directory");
    let limit: u64 = 4 << 20;
    let small = CacheRules { max_object_bytes: 64 * 1024, ..on_disk(limit) };
    let sidecar = Sidecar::new(&small, Some(dir.path().to_owned()));
    opened(&sidecar).await;
    for i in 0..400 {
        sidecar.farther.keep(&new_answer(&format!("http://shop:80/{i}\nG"), "", &"x".repeat(40_000)));
        if i % 50 == 49 {
            let done = |came| sidecar.metrics.gifts(Tier::Disk, came);
            eventually(|| done(Given::Kept) + done(Given::Dropped) > i).await;
        }
    }
    let mut size = 0;
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("is there") {
            let (path, data) = entry.map(|entry| (entry.path(), entry.metadata())).expect("is read");
            let data = data.expect("is there");
            if data.is_dir() { folders.push(path) } else { size += data.len() }
        }
    }
    assert!(size <= limit + 4096, "{size}");
    assert!(sidecar.metrics.gifts(Tier::Disk, Given::Kept) > 100);
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_no_harm() {
    let dir = tempfile::tempdir().expect("has a directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("is written");
    let sidecar = Sidecar::new(&on_disk(16 << 20), Some(file));
    sidecar.given(Tier::Disk, Given::Error, 1).await;
    assert!(!sidecar.finds(KEY).await);
    sidecar.farther.purge(&What::All);
    assert!(sidecar.farther.is_settled());
}

#[tokio::test]
async fn what_was_kept_for_a_policy_that_is_gone_is_gone() {
    let dir = tempfile::tempdir().expect("has a directory");
    let mut sidecar = sidecar(dir.path()).await;
    sidecar.farther.keep(&new_answer(KEY, "", "hello"));
    sidecar.given(Tier::Disk, Given::Kept, 1).await;
    sidecar.tiers.retain(|_| false);
    // It comes back: what was purged in between nobody knows.
    sidecar.farther = sidecar.tiers.of(&on_disk(16 << 20)).expect("has a tier");
    opened(&sidecar).await;
    assert!(!sidecar.finds(KEY).await);
}

#[tokio::test]
async fn the_last_purge_of_the_control_plane_is_known_after_a_restart() {
    let dir = tempfile::tempdir().expect("has a directory");
    let path = dir.path().join("cache");
    let first = Sidecar::new(&on_disk(16 << 20), Some(path.clone()));
    assert_eq!(first.tiers.last_purge(), (String::new(), 0));
    for (log, number, last) in [("a", 7, 7), ("a", 5, 7), ("b", 2, 2)] {
        first.tiers.note_purge(log, number);
        assert_eq!(first.tiers.last_purge(), (log.to_owned(), last));
    }
    end(first).await;
    let second = Tiers::new(Arc::default(), Some(path), Secrets::default());
    assert_eq!(second.last_purge(), ("b".to_owned(), 2));
}

#[tokio::test]
async fn another_size_begins_anew_in_the_same_process() {
    let dir = tempfile::tempdir().expect("has a directory");
    let mut sidecar = sidecar(dir.path()).await;
    sidecar.farther.keep(&new_answer(KEY, "", "hello"));
    sidecar.given(Tier::Disk, Given::Kept, 1).await;
    sidecar.farther = sidecar.tiers.of(&on_disk(8 << 20)).expect("has a tier");
    opened(&sidecar).await;
    assert!(!sidecar.finds(KEY).await);
    sidecar.farther.keep(&new_answer(KEY, "", "hello"));
    sidecar.given(Tier::Disk, Given::Kept, 2).await;
    sidecar.found(KEY, &[]).await;
}
