//! Private PostgreSQL and Redis: in a temporary directory, on free loopback ports, gone at the end. The demo and the
//! tests use them; nothing of the machine's own servers is touched.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

/// How often a starting server is asked whether it answers.
const POLL: Duration = Duration::from_millis(50);
/// How many times.
const POLLS: u32 = 600;

/// A server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// A program is not installed.
    #[error("{program} is not installed\nnext: apt-get install {package}")]
    Missing {
        /// Program.
        program: String,
        /// Debian package.
        package: &'static str,
    },
    /// A program failed.
    #[error("{program}: {reason}")]
    Failed {
        /// Program.
        program: String,
        /// Why.
        reason: String,
    },
    /// Files and processes.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// SQL.
    #[error("{}", crate::pg::describe(.0))]
    Sql(#[from] tokio_postgres::Error),
}

/// A directory that is removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    /// A new directory that only its owner may enter.
    pub fn new(name: &str) -> io::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("{name}-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711))?;
        Ok(Self(path))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves the directory where it is.
    pub fn keep(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // What cannot be removed is left to the system's own cleaning.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A port nobody listens on.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A private PostgreSQL.
#[derive(Debug)]
pub struct PrivatePostgres {
    directory: PathBuf,
    binaries: PathBuf,
    /// Unprivileged user to run as, when we are root: `initdb` and `postgres` refuse root.
    user: Option<(u32, u32)>,
    /// Port on 127.0.0.1.
    pub port: u16,
    running: bool,
}

impl PrivatePostgres {
    /// Creates a cluster below `parent` and starts it with `settings` on top of small defaults.
    pub async fn start(parent: &Path, name: &str, settings: &[&str]) -> Result<Self, PrivateError> {
        Self::start_from(&find_postgres()?, parent, name, settings).await
    }

    /// The same with the programs in `binaries`, to run another version.
    pub async fn start_from(
        binaries: &Path,
        parent: &Path,
        name: &str,
        settings: &[&str],
    ) -> Result<Self, PrivateError> {
        let binaries = binaries.to_owned();
        let directory = parent.join(name);
        std::fs::create_dir(&directory)?;
        let user = unprivileged_user()?;
        if let Some((uid, gid)) = user {
            chown(&directory, Some(uid), Some(gid))?;
        }
        let mut server = Self { directory, binaries, user, port: free_port()?, running: false };
        let data = server.data();
        let arguments =
            ["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        server.run("initdb", &arguments)?;
        let mut lines = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             max_wal_size = '512MB'\nshared_buffers = '64MB'\nmax_connections = 60\nlog_min_messages = warning\n",
            server.port,
            server.directory.display()
        );
        for setting in settings {
            lines.push_str(setting);
            lines.push('\n');
        }
        let file = Path::new(&data).join("conf.d-tailwater.conf");
        std::fs::write(&file, lines)?;
        if let Some((uid, gid)) = user {
            chown(&file, Some(uid), Some(gid))?;
        }
        let main = Path::new(&data).join("postgresql.conf");
        let text = std::fs::read_to_string(&main)?;
        std::fs::write(&main, format!("{text}\ninclude 'conf.d-tailwater.conf'\n"))?;
        server.resume().await?;
        Ok(server)
    }

    /// A standby that follows this server, which stops for a moment: its files are copied.
    pub async fn standby(
        &mut self,
        parent: &Path,
        name: &str,
        settings: &[&str],
    ) -> Result<Self, PrivateError> {
        let directory = parent.join(name);
        std::fs::create_dir(&directory)?;
        if let Some((uid, gid)) = self.user {
            chown(&directory, Some(uid), Some(gid))?;
        }
        let binaries = self.binaries.clone();
        let mut server = Self { directory, binaries, user: self.user, port: free_port()?, running: false };
        self.stop("fast")?;
        let copied = Command::new("cp").args(["-a", &self.data(), &server.data()]).status()?;
        self.resume().await?;
        if !copied.success() {
            return Err(io::Error::other("the files of the server could not be copied").into());
        }
        let data = PathBuf::from(server.data());
        // Slots are a server's own.
        for slot in std::fs::read_dir(data.join("pg_replslot"))? {
            std::fs::remove_dir_all(slot?.path())?;
        }
        let file = data.join("conf.d-tailwater.conf");
        let mut text = std::fs::read_to_string(&file)?
            .replace(&format!("port = {}", self.port), &format!("port = {}", server.port));
        text.push_str(&format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname=postgres'\n",
            self.port
        ));
        settings.iter().for_each(|setting| text.push_str(&format!("{setting}\n")));
        std::fs::write(&file, text)?;
        std::fs::write(data.join("standby.signal"), "")?;
        server.resume().await?;
        Ok(server)
    }

    /// Makes a standby the primary.
    pub fn promote(&mut self) -> Result<(), PrivateError> {
        let data = self.data();
        self.run("pg_ctl", &["-D", &data, "-w", "-t", "60", "promote"])
    }

    /// Starts a stopped server again.
    pub async fn resume(&mut self) -> Result<(), PrivateError> {
        let (data, log) = (self.data(), self.directory.join("log").display().to_string());
        self.run("pg_ctl", &["-D", &data, "-l", &log, "-w", "-t", "60", "start"])?;
        self.running = true;
        Ok(())
    }

    /// `pg_ctl stop -m MODE`; gives the time it took.
    pub fn stop(&mut self, mode: &str) -> Result<Duration, PrivateError> {
        let started = tokio::time::Instant::now();
        let data = self.data();
        self.run("pg_ctl", &["-D", &data, "-m", mode, "-w", "-t", "60", "stop"])?;
        self.running = false;
        Ok(started.elapsed())
    }

    /// `postgres://USER@127.0.0.1:PORT/DATABASE`.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// A superuser session.
    pub async fn client(&self, database: &str) -> Result<Client, PrivateError> {
        let (client, connection) = tokio_postgres::connect(&self.url("postgres", database), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Path of a program of this PostgreSQL.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    fn data(&self) -> String {
        self.directory.join("data").display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), PrivateError> {
        let mut command = Command::new(self.binaries.join(program));
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        as_user(&mut command, self.user);
        // Standard error would stay open in the server that pg_ctl starts, so it is not waited for there.
        if program == "pg_ctl" {
            command.stderr(Stdio::null());
        }
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        Err(PrivateError::Failed { program: program.to_owned(), reason: format!("{reason} {}", log.trim()) })
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if self.running {
            // At the end of its life nothing of it is needed any more.
            let _ = self.stop("immediate");
        }
    }
}

/// A private Redis.
#[derive(Debug)]
pub struct PrivateRedis {
    child: Child,
    /// Port on 127.0.0.1.
    pub port: u16,
}

impl PrivateRedis {
    /// Starts it without persistence.
    pub async fn start(parent: &Path) -> Result<Self, PrivateError> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.args(["--dir", &parent.display().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                PrivateError::Missing { program: "redis-server".into(), package: "redis-server" }
            }
            _ => error.into(),
        })?;
        let server = Self { child, port };
        for _ in 0..POLLS {
            if server.command("PING").await.is_some() {
                return Ok(server);
            }
            sleep(POLL).await;
        }
        Err(PrivateError::Failed { program: "redis-server".into(), reason: "did not answer".into() })
    }

    /// `redis://127.0.0.1:PORT/0`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Runs a command without arguments, such as FLUSHALL; `None` when it does not answer.
    pub async fn command(&self, name: &str) -> Option<()> {
        let client = redis::Client::open(self.url()).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd(name).query_async::<redis::Value>(&mut connection).await.ok().map(|_| ())
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would.
    pub fn stop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        // It is ours and holds nothing worth saving.
        self.stop();
    }
}

/// The newest PostgreSQL installed the Debian way, else the one on PATH.
fn find_postgres() -> Result<PathBuf, PrivateError> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let version = entry.file_name().to_string_lossy().parse().unwrap_or_default();
        let binaries = entry.path().join("bin");
        if binaries.join("initdb").exists() {
            found.push((version, binaries));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|directory| directory.join("initdb").exists());
    found.into_iter().max().map(|(_, binaries)| binaries).or(on_path).ok_or_else(|| PrivateError::Missing {
        program: "PostgreSQL server (initdb)".into(),
        package: "postgresql",
    })
}

/// Whom to run PostgreSQL as: ourselves, or as root the user `postgres` or `nobody`.
fn unprivileged_user() -> Result<Option<(u32, u32)>, PrivateError> {
    let own = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self")?);
    if own != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(wanted));
        let fields: Vec<&str> = line.unwrap_or_default().split(':').collect();
        if let [_, _, uid, gid, ..] = fields.as_slice()
            && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
        {
            return Ok(Some((uid, gid)));
        }
    }
    Err(PrivateError::Failed {
        program: "initdb".into(),
        reason: "refuses root, and there is no other user".into(),
    })
}

fn as_user(command: &mut Command, user: Option<(u32, u32)>) {
    use std::os::unix::process::CommandExt;
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
}

/// Writes a secret as it has to stand: readable by its owner alone.
pub fn write_secret(path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path.as_ref())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_ref())
}
