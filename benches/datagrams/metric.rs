//! What is measured here.

/// What was measured, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Metric {
    One,
    OneCpu,
    Eight,
    EightCpu,
    Lost,
    Median,
    Tail,
    Serial,
    SerialCpu,
    Four,
    FourCpu,
    StartRss,
    StartPss,
    IdleRss,
    IdlePss,
    IdleThreads,
    AfterRss,
    Flooded,
    Trickled,
    FloodRss,
    FloodThreads,
}

impl Metric {
    pub(crate) const ALL: [Self; 21] = [
        Self::One,
        Self::OneCpu,
        Self::Eight,
        Self::EightCpu,
        Self::Lost,
        Self::Median,
        Self::Tail,
        Self::Serial,
        Self::SerialCpu,
        Self::Four,
        Self::FourCpu,
        Self::StartRss,
        Self::StartPss,
        Self::IdleRss,
        Self::IdlePss,
        Self::IdleThreads,
        Self::AfterRss,
        Self::Flooded,
        Self::Trickled,
        Self::FloodRss,
        Self::FloodThreads,
    ];

    /// The panels of the plot.
    pub(crate) const PLOTTED: [Self; 6] =
        [Self::One, Self::Eight, Self::Median, Self::Four, Self::FourCpu, Self::IdlePss];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::One => "Echoes/s, one session",
            Self::OneCpu => "– server CPU, µs each",
            Self::Eight => "Echoes/s, eight sessions",
            Self::EightCpu => "– server CPU, µs each",
            Self::Lost => "– lost, of a million",
            Self::Median => "Round trip p50, µs",
            Self::Tail => "– p99, µs",
            Self::Serial => "New sessions/s, one at a time",
            Self::SerialCpu => "– server CPU, ms each",
            Self::Four => "New sessions/s, four at once",
            Self::FourCpu => "Server CPU per new session, ms",
            Self::StartRss => "RSS at start, MiB",
            Self::StartPss => "– PSS, MiB",
            Self::IdleRss => "RSS per idle session, KiB",
            Self::IdlePss => "PSS per idle session, KiB",
            Self::IdleThreads => "– threads",
            Self::AfterRss => "RSS after they closed, MiB",
            Self::Flooded => "Echoes/s while strangers flood, % of without",
            Self::Trickled => "– 10,000 strangers/s, %",
            Self::FloodRss => "– RSS it left behind, MiB",
            Self::FloodThreads => "– threads it left behind",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::One | Self::Eight | Self::Serial | Self::Four | Self::Flooded | Self::Trickled
        )
    }
}
