//! Which process of this machine listens at a port (Linux), to watch its memory.

use std::fs;

/// The process that listens at a TCP port of this machine, if it can be seen.
pub fn listener(port: u16) -> Option<u32> {
    let socket =
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| inode(&fs::read_to_string(path).ok()?, port))?;
    let wanted = format!("socket:[{socket}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == wanted.as_str())
    })
}

/// The socket that listens at `port` in a table of `/proc/net`.
fn inode(table: &str, port: u16) -> Option<u64> {
    const LISTENS: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let at = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        (at == port && *fields.get(3)? == LISTENS).then(|| fields.get(9)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n   \
                     1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 17 1 0\n";
        assert_eq!((inode(table, 8080), inode(table, 8081), inode("", 1)), (Some(4242), None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn finds_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listener(socket.local_addr().unwrap().port()), Some(std::process::id()));
    }
}
