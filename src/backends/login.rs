//! Logins whose secrets change in their files while the program runs.
//!
//! A rotation writes the new password to the file first and then changes it on the server. From
//! then on the server refuses the old one; the caller that meets the refusal reads the file again
//! and makes one more attempt, so that no code above it notices.

use std::{future::Future, path::PathBuf, sync::Arc};

use parking_lot::Mutex;

use crate::{
    config::Secret,
    error::{Error, ErrorKind},
};

/// Settings with secrets, and the form of them that a driver needs.
pub(super) trait Credentials: Clone + Send + Sync + 'static {
    /// The value with which a connection is opened.
    type Ready: Send + Sync + 'static;

    fn secrets(&mut self) -> Vec<&mut Secret>;

    fn ready(&self) -> Result<Self::Ready, Error>;
}

/// The credentials in use.
pub(super) struct Login<C: Credentials> {
    connection: &'static str,
    current: Mutex<Current<C>>,
}

struct Current<C: Credentials> {
    credentials: C,
    ready: Arc<C::Ready>,
}

impl<C: Credentials> Login<C> {
    /// Starts with the current contents of the files, because the configuration can be older.
    pub(super) fn new(connection: &'static str, mut credentials: C) -> Result<Self, Error> {
        for secret in credentials.secrets() {
            // If a file no longer exists, its last known content stays in use.
            if let Ok(Some(newer)) = secret.refreshed() {
                *secret = newer;
            }
        }
        let ready = Arc::new(credentials.ready()?);
        Ok(Self { connection, current: Mutex::new(Current { credentials, ready }) })
    }

    pub(super) fn current(&self) -> Arc<C::Ready> {
        Arc::clone(&self.current.lock().ready)
    }

    /// Runs `connect`, and once more if the server refuses the login and the files hold another.
    ///
    /// # Cancel safety
    /// Same as `connect`; the new login is kept.
    pub(super) async fn connect<T, F, Fut>(&self, connect: F) -> Result<T, Error>
    where
        F: Fn(Arc<C::Ready>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let used = self.current();
        match connect(Arc::clone(&used)).await {
            Err(refused) if refused.kind() == ErrorKind::Unauthenticated => {
                connect(self.renew(&used, refused)?).await
            }
            result => result,
        }
    }

    /// Returns the replacement for `used`, which the server has `refused`.
    ///
    /// # Errors
    /// `refused` if there is no replacement; the cause if a file cannot be read or used.
    pub(super) fn renew(
        &self,
        used: &Arc<C::Ready>,
        refused: Error,
    ) -> Result<Arc<C::Ready>, Error> {
        let mut current = self.current.lock();
        // Another caller has already met the same refusal.
        if !Arc::ptr_eq(&current.ready, used) {
            return Ok(Arc::clone(&current.ready));
        }
        let mut credentials = current.credentials.clone();
        let changed = refresh(&mut credentials)?;
        if changed.is_empty() {
            return Err(refused);
        }
        current.ready = Arc::new(credentials.ready()?);
        current.credentials = credentials;
        let connection = self.connection;
        for file in changed {
            tracing::info!(
                connection, file = %file.display(),
                "the login of {connection} was refused; its secret file was read again and has changed"
            );
        }
        Ok(Arc::clone(&current.ready))
    }
}

/// Reads all files again; returns those whose content has changed.
fn refresh(credentials: &mut impl Credentials) -> Result<Vec<PathBuf>, Error> {
    let mut changed = Vec::new();
    for secret in credentials.secrets() {
        let Some(file) = secret.file().map(PathBuf::from) else { continue };
        let newer = secret.refreshed().map_err(|error| {
            let message = format!(
                "the login was refused, and the secret file {} cannot be read again",
                file.display()
            );
            Error::new(ErrorKind::Unauthenticated, message).with_source(error)
        })?;
        if let Some(newer) = newer {
            *secret = newer;
            changed.push(file);
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs};

    use super::*;

    #[derive(Clone)]
    struct Password(Secret);

    impl Credentials for Password {
        type Ready = String;

        fn secrets(&mut self) -> Vec<&mut Secret> {
            vec![&mut self.0]
        }

        fn ready(&self) -> Result<String, Error> {
            Ok(self.0.expose().to_owned())
        }
    }

    /// A password in a file, and a server that accepts `right`.
    struct World {
        _folder: tempfile::TempDir,
        file: PathBuf,
        login: Login<Password>,
        right: RefCell<&'static str>,
        tried: RefCell<Vec<String>>,
    }

    impl World {
        fn new(password: &'static str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("password");
            fs::write(&file, format!("{password}\n")).unwrap();
            let secret = serde_json::json!({"value": "as configured", "file": file});
            let secret = Password(serde_json::from_value(secret).unwrap());
            Self {
                _folder: folder,
                file,
                login: Login::new("test", secret).unwrap(),
                right: RefCell::new(password),
                tried: RefCell::default(),
            }
        }

        async fn connect(&self) -> Result<(), Error> {
            self.login
                .connect(async |password| {
                    self.tried.borrow_mut().push((*password).clone());
                    if *password == *self.right.borrow() {
                        return Ok(());
                    }
                    Err(Error::new(ErrorKind::Unauthenticated, "it is wrong"))
                })
                .await
        }

        fn tried(&self) -> Vec<String> {
            self.tried.take()
        }
    }

    #[tokio::test]
    async fn a_refused_login_is_read_again_and_tried_once_more() {
        let world = World::new("first");
        world.connect().await.unwrap();
        assert_eq!(world.tried(), ["first"], "what the file holds, not what was configured");
        fs::write(&world.file, "second").unwrap();
        world.connect().await.unwrap();
        assert_eq!(world.tried(), ["first"], "the server has not changed yet");
        world.right.replace("second");
        world.connect().await.unwrap();
        assert_eq!(world.tried(), ["first", "second"]);
        world.connect().await.unwrap();
        assert_eq!(world.tried(), ["second"]);
    }

    #[tokio::test]
    async fn a_file_that_did_not_change_is_not_tried_again() {
        let world = World::new("first");
        world.right.replace("another");
        let error = world.connect().await.unwrap_err();
        assert_eq!((error.message(), world.tried().len()), ("it is wrong", 1));
        // A program that writes the file in place leaves it empty for a moment.
        fs::write(&world.file, "").unwrap();
        let error = world.connect().await.unwrap_err();
        assert_eq!((error.message(), world.tried().len()), ("it is wrong", 1));
    }

    #[tokio::test]
    async fn a_missing_file_is_named_in_the_refusal() {
        let world = World::new("first");
        world.right.replace("another");
        fs::remove_file(&world.file).unwrap();
        let error = world.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.message().contains("password cannot be read again"), "{error}");
    }

    #[test]
    fn those_who_meet_the_same_refusal_share_the_new_login() {
        let world = World::new("first");
        let refused = || Error::new(ErrorKind::Unauthenticated, "it is wrong");
        let used = world.login.current();
        fs::write(&world.file, "second").unwrap();
        let first = world.login.renew(&used, refused()).unwrap();
        let second = world.login.renew(&used, refused()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*first, "second");
    }
}
