# Writes values/residuals.json and fixtures/colon.csv. Run from tests/reference: Rscript r/residuals.R
suppressMessages({library(survival); library(jsonlite)})
lung <- read.csv("fixtures/lung.csv")
lung <- lung[!is.na(lung$ph_ecog), ]
tied <- read.csv("fixtures/tied.csv")
tied$event <- as.integer(tied$status == 1)
deaths <- colon[colon$etype == 2, c("time", "status", "age", "differ", "extent")]
deaths <- deaths[complete.cases(deaths), ]
write.csv(deaths, "fixtures/colon.csv", row.names = FALSE, quote = FALSE)
tight <- coxph.control(eps = 1e-15, iter.max = 50, toler.chol = 1e-16)

all_of <- function(fit) {
  out <- list(martingale = residuals(fit, "martingale"), score = residuals(fit, "score"), dfbeta = residuals(fit, "dfbeta"),
              schoenfeld = residuals(fit, "schoenfeld"), schoenfeld_time = as.numeric(rownames(residuals(fit, "schoenfeld"))))
  lapply(out, unname)
}
zph <- function(fit) {
  table <- cox.zph(fit, transform = "km")$table
  list(term = rownames(table), chi2 = unname(table[, "chisq"]), df = unname(table[, "df"]), p = unname(table[, "p"]))
}
out <- list()
of_lung <- coxph(Surv(time, event) ~ age + sex + ph_ecog, lung, control = tight)
of_tied <- coxph(Surv(time, event) ~ factor(true_code) + age, tied, control = tight)
of_strata <- coxph(Surv(time, event) ~ factor(true_code) + age + strata(stratum), tied, control = tight)
of_weights <- coxph(Surv(time, event) ~ factor(true_code) + age + strata(stratum), tied, weights = weight,
                    robust = FALSE, control = tight)
out$lung <- all_of(of_lung)
out$tied_strata <- all_of(of_strata)
out$tied_weights <- all_of(of_weights)
out$zph_lung <- zph(of_lung)
out$zph_tied <- zph(of_tied)
out$zph_tied_strata <- zph(of_strata)

# Ratio of hazard ratios: the stacked model with robust errors by patient.
deaths$id <- seq_len(nrow(deaths))
deaths$a <- factor(deaths$differ)
deaths$b <- factor(pmax(deaths$extent, 2))
stacked <- rbind(data.frame(deaths[c("id", "time", "status", "age")], category = deaths$a, e = 0),
                 data.frame(deaths[c("id", "time", "status", "age")], category = factor(as.integer(deaths$b) - 0), e = 1))
levels(stacked$category) <- c("1", "2", "3")
fit <- coxph(Surv(time, status) ~ (age + category) * e + strata(e) - e, stacked, cluster = id, control = tight)
k <- grep("category.*:e", names(coef(fit)))
out$ratio_colon <- list(names = names(coef(fit))[k], log_ratio = -unname(coef(fit)[k]), se = sqrt(diag(fit$var)[k]))
out$versions <- list(R = R.version.string, survival = as.character(packageVersion("survival")))
write_json(out, "values/residuals.json", digits = I(17), auto_unbox = TRUE, na = "null", pretty = FALSE)
