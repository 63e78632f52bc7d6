//! Times as DOS counts them: two seconds at a time, from 1980 to 2107, in UTC here.

/// 1980-01-01 and 2107-12-31 23:59:58.
const FIRST: u64 = 315_532_800;
const LAST: u64 = 4_354_819_198;

/// Date and time as in a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DosTime {
    pub(super) date: u16,
    pub(super) time: u16,
}

impl DosTime {
    /// Of seconds since 1970, within what DOS can say.
    pub(super) fn new(seconds: u64) -> Self {
        let seconds = seconds.clamp(FIRST, LAST);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days to a civil date, by eras of 400 years that begin on 1 March.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let date = (year - 1980) << 9 | month << 5 | day;
        let time = (second / 3600) << 11 | (second / 60 % 60) << 5 | ((second % 60) / 2);
        Self { date: date as u16, time: time as u16 }
    }

    /// Seconds since 1970.
    pub(super) fn seconds(self) -> u64 {
        let (date, time) = (u64::from(self.date), u64::from(self.time));
        let (year, month, day) = (1980 + (date >> 9), date >> 5 & 15, date & 31);
        let shifted_year = year - u64::from(month <= 2);
        let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
        let shifted_month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * 86_400 + (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back_to_two_seconds() {
        for seconds in (FIRST..=LAST).step_by(86_399 * 7 + 11).chain([951_782_400, 1_709_164_801, LAST]) {
            assert_eq!(DosTime::new(seconds).seconds(), seconds & !1, "{seconds}");
        }
        assert_eq!(DosTime::new(0).seconds(), FIRST);
        assert_eq!(DosTime::new(u64::MAX).seconds(), LAST);
        // 2024-02-29 12:34:56
        let leap = DosTime::new(1_709_210_096);
        assert_eq!((leap.date, leap.time), (44 << 9 | 2 << 5 | 29, 12 << 11 | 34 << 5 | 28));
    }
}
