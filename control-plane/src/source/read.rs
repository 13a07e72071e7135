//! Reads a tree of YAML files, with bounds on all of it.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const MAX_FILES: usize = 20_000;
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_TOTAL_BYTES: u64 = 256 << 20;
const MAX_DEPTH: usize = 16;

/// One file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path, as people would write it.
    pub name: Arc<str>,
    /// What is in it.
    pub text: Arc<str>,
}

/// Something that could not be read. What was read there before stays in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file or directory.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// All that was found at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The files, sorted by name.
    pub files: Vec<SourceFile>,
    /// What could not be read, sorted.
    pub problems: Vec<Problem>,
}

/// Reads all there is, once.
pub fn load(roots: &[PathBuf]) -> Tree {
    read(&list(roots), roots, &Tree::default())
}

/// What tells a changed file from an unchanged one without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// The files of a tree without their contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    /// Roots that are there.
    pub(super) present: Vec<PathBuf>,
    pub(super) problems: Vec<Problem>,
}

/// Lists every `*.yaml` and `*.yml` below the roots. Hidden entries are left out: editors keep their own files there,
/// and a ConfigMap mount keeps the same files a second time below `..data`.
pub(super) fn list(roots: &[PathBuf]) -> Listing {
    let mut listing = Listing::default();
    for root in roots {
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => {
                listing.present.push(root.clone());
                list_directory(root, 0, &mut HashSet::new(), &mut listing);
            }
            Ok(found) => {
                listing.present.push(root.clone());
                listing.files.insert(root.clone(), Stamp::of(&found));
            }
            Err(error) => {
                let message = match error.kind() {
                    io::ErrorKind::NotFound => "is not there; it is read as soon as it is".to_owned(),
                    _ => format!("cannot be read: {error}"),
                };
                listing.problems.push(Problem { path: display(root), message });
            }
        }
    }
    listing
}

fn list_directory(directory: &Path, depth: usize, above: &mut HashSet<(u64, u64)>, listing: &mut Listing) {
    let problem = |listing: &mut Listing, path: &Path, message: String| {
        listing.problems.push(Problem { path: display(path), message });
    };
    if depth > MAX_DEPTH {
        let message = format!("is more than {MAX_DEPTH} directories deep and is left out; flatten the tree");
        return problem(listing, directory, message);
    }
    let entries = fs::metadata(directory).and_then(|found| Ok((found, fs::read_dir(directory)?)));
    let (found, entries) = match entries {
        Ok(read) => read,
        Err(error) => return problem(listing, directory, format!("cannot be listed: {error}")),
    };
    // A link to a directory above would go round for ever.
    let place = (found.dev(), found.ino());
    if !above.insert(place) {
        return;
    }
    for entry in entries {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        // Follows links: a ConfigMap's files are links.
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            // Gone between the listing and now, or a link to nowhere.
            Err(_) => continue,
        };
        if found.is_dir() {
            list_directory(&path, depth + 1, above, listing);
        } else if found.is_file() && is_yaml(&path) {
            if listing.files.len() >= MAX_FILES {
                let message = format!("holds more than {MAX_FILES} policy files; the rest is left out");
                return problem(listing, directory, message);
            }
            listing.files.insert(path, Stamp::of(&found));
        }
    }
    above.remove(&place);
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "yaml" || end == "yml")
}

/// Reads what is listed. A file that is there but cannot be read keeps the text it had `before`, and so does everything
/// below a root that vanished as a whole: a mount that hiccups must not take a mesh's policy away.
pub(super) fn read(listing: &Listing, roots: &[PathBuf], before: &Tree) -> Tree {
    let known: BTreeMap<&str, &SourceFile> = before.files.iter().map(|file| (&*file.name, file)).collect();
    let mut tree =
        Tree { files: Vec::with_capacity(listing.files.len()), problems: listing.problems.clone() };
    let mut total = 0u64;
    for path in listing.files.keys() {
        let name = display(path);
        let text = read_text(path, &mut total);
        match text {
            Ok(Some(text)) => tree.files.push(SourceFile { name: name.into(), text: text.into() }),
            Ok(None) => {}
            Err(message) => {
                tree.files.extend(known.get(name.as_str()).map(|file| (*file).clone()));
                tree.problems.push(Problem { path: name, message });
            }
        }
    }
    for root in roots.iter().filter(|root| !listing.present.contains(root)) {
        let below = |file: &&SourceFile| Path::new(&*file.name).starts_with(display(root));
        tree.files.extend(before.files.iter().filter(below).cloned());
    }
    tree.files.sort_by(|a, b| a.name.cmp(&b.name));
    tree.files.dedup_by(|a, b| a.name == b.name);
    tree.problems.sort();
    tree
}

fn read_text(path: &Path, total: &mut u64) -> Result<Option<String>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB; split it", MAX_FILE_BYTES >> 20));
    }
    *total += bytes.len() as u64;
    if *total > MAX_TOTAL_BYTES {
        return Err(format!("would bring all policy files above {} MiB together", MAX_TOTAL_BYTES >> 20));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err(format!("is not UTF-8 text from byte {at} on; save it as UTF-8"))
        }
    }
}

fn display(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(root: &Path) -> Tree {
        let roots = [root.to_path_buf()];
        read(&list(&roots), &roots, &Tree::default())
    }

    fn names(tree: &Tree, root: &Path) -> Vec<String> {
        let prefix = format!("{}/", root.display());
        tree.files.iter().map(|file| file.name.trim_start_matches(&prefix).to_owned()).collect()
    }

    #[test]
    fn only_yaml_is_read_from_the_whole_tree() {
        let root = tempfile::tempdir().expect("temp dir");
        let at = root.path();
        fs::create_dir_all(at.join("sub/deep")).expect("dir");
        for name in ["b.yaml", "a.yml", "README.md", ".hidden.yaml", "x.yaml~", "sub/deep/c.yaml"] {
            fs::write(at.join(name), name).expect("written");
        }
        let tree = tree(at);
        assert_eq!(names(&tree, at), ["a.yml", "b.yaml", "sub/deep/c.yaml"]);
        assert_eq!(&*tree.files[2].text, "sub/deep/c.yaml");
        assert!(tree.problems.is_empty());
    }

    #[test]
    fn a_config_map_mount_is_read_once() {
        let root = tempfile::tempdir().expect("temp dir");
        let at = root.path();
        fs::create_dir(at.join("..2026_01")).expect("dir");
        fs::write(at.join("..2026_01/a.yaml"), "one").expect("written");
        symlink("..2026_01", at.join("..data")).expect("link");
        symlink("..data/a.yaml", at.join("a.yaml")).expect("link");
        let tree = tree(at);
        assert_eq!(names(&tree, at), ["a.yaml"]);
        assert_eq!(&*tree.files[0].text, "one");
    }

    #[test]
    fn a_circle_of_links_ends() {
        let root = tempfile::tempdir().expect("temp dir");
        fs::create_dir(root.path().join("sub")).expect("dir");
        fs::write(root.path().join("sub/a.yaml"), "a").expect("written");
        symlink(root.path(), root.path().join("sub/again")).expect("link");
        assert_eq!(names(&tree(root.path()), root.path()), ["sub/a.yaml"]);
    }

    #[test]
    fn an_unreadable_file_keeps_its_last_text_and_says_why() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("a.yaml");
        fs::write(&path, "good").expect("written");
        let roots = [root.path().to_path_buf()];
        let before = tree(root.path());
        fs::write(&path, b"\xff\xfe").expect("written");
        let after = read(&list(&roots), &roots, &before);
        assert_eq!(after.files, before.files);
        assert!(after.problems[0].message.contains("UTF-8"));
        fs::write(&path, vec![b' '; (MAX_FILE_BYTES + 1) as usize]).expect("written");
        let after = read(&list(&roots), &roots, &before);
        assert_eq!(after.files, before.files);
        assert!(after.problems[0].message.contains("split it"));
    }

    #[test]
    fn a_vanished_root_keeps_its_policy_but_an_emptied_one_does_not() {
        let root = tempfile::tempdir().expect("temp dir");
        let at = root.path().join("policy");
        fs::create_dir(&at).expect("dir");
        fs::write(at.join("a.yaml"), "a").expect("written");
        let before = tree(&at);
        fs::rename(&at, root.path().join("elsewhere")).expect("renamed");
        let roots = [at.clone()];
        let after = read(&list(&roots), &roots, &before);
        assert_eq!(after.files, before.files);
        assert_eq!(after.problems.len(), 1);
        fs::create_dir(&at).expect("dir");
        assert!(read(&list(&roots), &roots, &before).files.is_empty());
    }

    #[test]
    fn one_file_can_be_a_root_of_its_own() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("mesh.conf");
        fs::write(&path, "text").expect("written");
        assert_eq!(tree(&path).files.len(), 1);
    }
}
