//! What is measured here.

/// What was measured, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Metric {
    Up,
    UpCpu,
    Down,
    DownCpu,
    New,
    NewCpu,
    Resumed,
    Hybrid,
    Median,
    Tail,
    StartRss,
    StartPss,
    IdleRss,
    IdlePss,
    AfterRss,
}

impl Metric {
    pub(crate) const ALL: [Self; 15] = [
        Self::Up,
        Self::UpCpu,
        Self::Down,
        Self::DownCpu,
        Self::New,
        Self::NewCpu,
        Self::Resumed,
        Self::Hybrid,
        Self::Median,
        Self::Tail,
        Self::StartRss,
        Self::StartPss,
        Self::IdleRss,
        Self::IdlePss,
        Self::AfterRss,
    ];

    /// The panels of the plot.
    pub(crate) const PLOTTED: [Self; 6] =
        [Self::Up, Self::Down, Self::New, Self::Median, Self::IdleRss, Self::StartRss];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Up => "Bulk up, MB/s",
            Self::UpCpu => "– server CPU, ms/GB",
            Self::Down => "Bulk down, MB/s",
            Self::DownCpu => "– server CPU, ms/GB",
            Self::New => "New mTLS connections/s",
            Self::NewCpu => "– server CPU, ms each",
            Self::Resumed => "– resumed/s",
            Self::Hybrid => "– X25519MLKEM768/s",
            Self::Median => "64-byte round trip p50, µs",
            Self::Tail => "– p99, µs",
            Self::StartRss => "RSS at start, MiB",
            Self::StartPss => "– PSS, MiB",
            Self::IdleRss => "RSS per idle connection, KiB",
            Self::IdlePss => "– PSS, KiB",
            Self::AfterRss => "RSS after they closed, MiB",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Up | Self::Down | Self::New | Self::Resumed | Self::Hybrid)
    }
}
