//! Secrets that policy names and an operator lays beside the sidecar: a folder of small files for each, as a mounted
//! Kubernetes Secret is one. They are read anew for every connection, so that a changed one needs no restart.

use super::trouble::Trouble;
use std::{
    fmt,
    io::{ErrorKind, Read},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// The largest file that is read.
const FILE_MAX: u64 = 1 << 20;

/// Where secrets lie; nowhere unless the operator says so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets(Option<Arc<Path>>);

/// As whom to log in.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The server's default user if there is none.
    pub(super) user: Option<String>,
    pub(super) password: Hidden,
}

/// What is shown to nobody but the server.
pub(super) struct Hidden(Vec<u8>);

impl Hidden {
    pub(super) fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The folder of one secret.
pub(super) struct Folder(PathBuf);

impl Secrets {
    pub(crate) fn new(dir: Option<&Path>) -> Self {
        Self(dir.map(Arc::from))
    }

    /// Where a secret, named `<namespace>/<name>`, has to be.
    pub(super) fn folder(&self, secret: &str) -> Result<Folder, Trouble> {
        let Some(dir) = &self.0 else { return Err(Trouble::NoPlace { secret: secret.into() }) };
        let folder = Path::new(secret);
        // Policy is checked before it comes here; that it leads nowhere else is too important to rely on it.
        let mut components = folder.components();
        let inside = |component: Option<Component<'_>>| matches!(component, Some(Component::Normal(_)));
        if !inside(components.next()) || !inside(components.next()) || components.next().is_some() {
            return Err(Trouble::file(folder, "it is no name of a secret"));
        }
        Ok(Folder(dir.join(folder)))
    }
}

impl Folder {
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// What a file holds; `None` if there is none of that name.
    pub(super) fn read(&self, file: &str) -> Result<Option<Vec<u8>>, Trouble> {
        read(&self.path(file))
    }

    /// User name and password, each without the line break that editors and `echo` leave at its end.
    pub(super) fn credentials(&self) -> Result<Credentials, Trouble> {
        let path = self.path("password");
        let Some(password) = read(&path)? else { return Err(Trouble::file(&path, "it is not there")) };
        let password = one_line(password).ok_or_else(|| Trouble::file(&path, "it has more than one line"))?;
        if password.is_empty() {
            return Err(Trouble::file(&path, "it is empty"));
        }
        let path = self.path("username");
        let user = match read(&path)? {
            None => None,
            Some(text) => one_line(text)
                .and_then(|line| String::from_utf8(line).ok())
                .map(|user| (!user.is_empty()).then_some(user))
                .ok_or_else(|| Trouble::file(&path, "it is not one line of text"))?,
        };
        Ok(Credentials { user, password: Hidden(password) })
    }
}

fn one_line(mut text: Vec<u8>) -> Option<Vec<u8>> {
    if text.last() == Some(&b'\n') {
        text.pop();
        if text.last() == Some(&b'\r') {
            text.pop();
        }
    }
    (!text.contains(&b'\n')).then_some(text)
}

/// What a file holds; `None` if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Trouble> {
    // Opening a pipe would wait for whoever writes to it.
    let is_file = match std::fs::metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Trouble::file(path, error)),
    };
    if !is_file {
        return Err(Trouble::file(path, "it is no file"));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 > FILE_MAX => Err(Trouble::file(path, "it is larger than 1 MiB")),
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Trouble::file(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Secrets) {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("shop/redis");
        std::fs::create_dir_all(&folder).expect("made");
        for (file, bytes) in files {
            std::fs::write(folder.join(file), bytes).expect("written");
        }
        let secrets = Secrets::new(Some(dir.path()));
        (dir, secrets)
    }

    fn credentials(files: &[(&str, &[u8])]) -> Result<(Option<String>, Vec<u8>), String> {
        let (_dir, secrets) = laid(files);
        let folder = secrets.folder("shop/redis").map_err(|trouble| trouble.to_string())?;
        let read = folder.credentials().map_err(|trouble| trouble.to_string())?;
        Ok((read.user, read.password.reveal().to_vec()))
    }

    #[test]
    fn a_password_is_one_line_and_the_user_may_be_left_out() {
        for text in [&b"s3cret"[..], b"s3cret\n", b"s3cret\r\n"] {
            assert_eq!(credentials(&[("password", text)]), Ok((None, b"s3cret".to_vec())));
        }
        let both = credentials(&[("password", b" a b "), ("username", b"weft\n")]);
        assert_eq!(both, Ok((Some("weft".to_owned()), b" a b ".to_vec())), "blanks belong to it");
        assert_eq!(credentials(&[("password", b"x\xff"), ("username", b"")]), Ok((None, b"x\xff".to_vec())));
    }

    #[test]
    fn what_is_wrong_is_told_without_what_is_in_it() {
        let told = |files: &[(&str, &[u8])]| credentials(files).expect_err("is wrong");
        assert!(told(&[]).contains("shop/redis/password") && told(&[]).contains("it is not there"));
        assert!(told(&[("password", b"\n")]).contains("it is empty"));
        let lines = told(&[("password", b"s3cret\nother")]);
        assert!(lines.contains("more than one line") && !lines.contains("s3cret"), "{lines}");
        let user = told(&[("password", b"s3cret"), ("username", b"\xffme")]);
        assert!(user.contains("username") && !user.contains("s3cret"), "{user}");
        let large = vec![b'x'; FILE_MAX as usize + 1];
        assert!(told(&[("password", &large)]).contains("larger"));
        let (dir, secrets) = laid(&[]);
        std::fs::create_dir(dir.path().join("shop/redis/password")).expect("made");
        let folder = secrets.folder("shop/redis").expect("is a name");
        assert!(folder.credentials().expect_err("is no file").to_string().contains("it is no file"));
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let (_dir, secrets) = laid(&[]);
        for name in
            ["", "redis", "/redis", "shop/..", "../shop", "shop/redis/password", "shop/../../etc", "./a"]
        {
            assert!(secrets.folder(name).is_err(), "{name}");
        }
        let nowhere = Secrets::default().folder("shop/redis").err().map(|trouble| trouble.cure());
        assert!(nowhere.is_some_and(|cure| cure.contains("--secrets-dir")));
    }

    #[test]
    fn a_password_is_hidden_from_whoever_prints_it() {
        let (_dir, secrets) = laid(&[("password", b"s3cret")]);
        let read = secrets.folder("shop/redis").and_then(|folder| folder.credentials());
        let text = format!("{read:?} {:?}", read.as_ref().map(|read| &read.password).ok());
        assert!(text.contains("(hidden)") && !text.contains("s3cret") && !text.contains("115, 51"), "{text}");
    }
}
