//! A server that does what no service should.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// How it misbehaves.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// Accepts and says nothing.
    Silent,
    /// Sends these bytes and closes.
    Says(Vec<u8>),
    /// Sends these bytes and then is silent with the connection open.
    SaysAndHolds(Vec<u8>),
    /// Sends these bytes, one a second.
    Drips(Vec<u8>),
    /// Sends these bytes, then 'x' without end.
    Endless(Vec<u8>),
    /// Closes at once.
    Closes,
    /// Resets at once.
    Resets,
}

/// Starts it on a free port of 127.0.0.1 and returns the port; it ends with the test's runtime.
pub(crate) async fn hostile(manner: Manner) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let manner = manner.clone();
            tokio::spawn(async move {
                let mut request = [0u8; 4096];
                match manner {
                    Manner::Silent => tokio::time::sleep(Duration::from_secs(3600)).await,
                    Manner::Closes => {}
                    Manner::Resets => stream.set_zero_linger().unwrap_or(()),
                    Manner::Says(bytes) => {
                        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut request)).await;
                        let _ = stream.write_all(&bytes).await;
                    }
                    Manner::SaysAndHolds(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                    }
                    Manner::Drips(bytes) => {
                        for byte in bytes {
                            if stream.write_all(&[byte]).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                    Manner::Endless(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
                    }
                }
            });
        }
    });
    port
}
