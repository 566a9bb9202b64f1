# Writes fixtures/mgus2.csv and values/prognosis.json. Run from tests/reference: Rscript r/prognosis.R
suppressMessages({library(survival); library(riskRegression); library(prodlim); library(splines); library(jsonlite)})
tight <- coxph.control(eps = 1e-15, iter.max = 50, toler.chol = 1e-16)
lung <- read.csv("fixtures/lung.csv"); lung <- lung[!is.na(lung$ph_ecog), ]
tied <- read.csv("fixtures/tied.csv"); tied$event <- as.integer(tied$status == 1)
colon <- read.csv("fixtures/colon.csv")
mgus <- mgus2[!is.na(mgus2$mspike), ]
mgus <- data.frame(time = ifelse(mgus$pstat == 1, mgus$ptime, mgus$futime),
                   status = ifelse(mgus$pstat == 1, 1, 2 * mgus$death), mspike = mgus$mspike)
write.csv(mgus, "fixtures/mgus2.csv", row.names = FALSE, quote = FALSE)
out <- list()

# Uno's C: ymax lies between two times, for R's is inclusive
c_of <- function(...) { k <- concordance(..., reverse = TRUE); c(unname(k$concordance), sqrt(k$var)) }
out$uno <- list(
  lung = c_of(Surv(time, event) ~ age, lung, timewt = "n/G2", ymax = 500.5),
  tied = c_of(Surv(time, event) ~ score_a, tied, timewt = "n/G2", ymax = 20.5),
  category = c_of(Surv(time, event) ~ true_code, tied, timewt = "n/G2", ymax = 20.5),
  strata = c_of(Surv(time, event) ~ score_a + strata(stratum), tied, timewt = "n/G2", ymax = 20.5))

# Two models of the same patients: difference of C, and the ratio of hazard ratios from a stacked model
difference <- function(k) c(unname(k$concordance[1] - k$concordance[2]), sqrt(c(c(1, -1) %*% k$var %*% c(1, -1))))
stacked <- function(data, covariate, first, second, strata) {
  n <- nrow(data)
  long <- data.frame(time = rep(data$time, 2), event = rep(data$event, 2), x = rep(data[[covariate]], 2),
                     category = factor(c(data[[first]], data[[second]])), e = rep(0:1, each = n), id = rep(1:n, 2),
                     s = interaction(rep(strata, 2), rep(0:1, each = n)))
  fit <- coxph(Surv(time, event) ~ (x + category) * e + strata(s) - e, long, cluster = id, control = tight)
  k <- grep("^category.*:e$", names(coef(fit)))
  list(log_ratio = unname(-coef(fit)[k]), se = unname(sqrt(diag(fit$var))[k]))
}
pair <- function(data, covariate, first, second, strata) {
  data$s <- strata
  model <- function(name) coxph(as.formula(paste0("Surv(time, event) ~ factor(", name, ") + ", covariate, " + strata(s)")),
                                data, control = tight)
  a <- model(first); b <- model(second)
  list(harrell = difference(concordance(a, b)), uno = difference(concordance(a, b, timewt = "n/G2", ymax = 20.5)),
       stacked = stacked(data, covariate, first, second, strata))
}
out$tied_pair <- pair(tied, "age", "predicted_code", "true_code", rep(0, nrow(tied)))
out$tied_pair_strata <- pair(tied, "age", "predicted_code", "true_code", tied$stratum)
colon$event <- colon$status; colon$extent2 <- pmax(colon$extent, 2) - 1
out$colon <- stacked(colon, "age", "differ", "extent2", rep(0, nrow(colon)))

# Models nested in one another
fit_of <- function(f) coxph(f, tied, control = tight)
m0 <- fit_of(Surv(time, event) ~ age); m1 <- fit_of(Surv(time, event) ~ age + factor(predicted_code))
m2 <- fit_of(Surv(time, event) ~ age + factor(true_code))
m3 <- fit_of(Surv(time, event) ~ age + factor(true_code) + factor(predicted_code))
lr <- function(a, b) { t <- anova(a, b); list(chi2 = t$Chisq[2], df = t$Df[2], p = t[["Pr(>|Chi|)"]][2]) }
out$nested <- list(m1_m0 = lr(m0, m1), m2_m0 = lr(m0, m2), m3_m2 = lr(m2, m3), m3_m1 = lr(m1, m3))

# Case weights of a resample: R takes none that are 0, so patients who were not drawn are left out
set.seed(3); w <- as.integer(rmultinom(1, nrow(tied), rep(1, nrow(tied))))
weighted <- coxph(Surv(time, event) ~ factor(true_code) + age + strata(stratum), tied[w > 0, ], weights = w[w > 0],
                  control = tight, robust = FALSE)
out$resample <- list(weights = w, coef = unname(coef(weighted)), loglik = weighted$loglik)

# Smoothed scaled Schoenfeld residuals, as plot.cox.zph
zph <- cox.zph(coxph(Surv(time, event) ~ age + sex + ph_ecog, lung, control = tight))
grid <- seq(min(zph$x), max(zph$x), length = 40)
basis <- ns(c(grid, zph$x), df = 4, intercept = TRUE); drawn <- basis[1:40, ]; seen <- basis[-(1:40), ]
qmat <- qr(seen); bk <- backsolve(qmat$qr[1:4, 1:4], diag(4))
once <- !duplicated(zph$x)
out$schoenfeld <- list(time = approx(zph$x[once], zph$time[once], grid)$y, y = c(drawn %*% qr.coef(qmat, zph$y[, 3])),
                       se = c(sqrt(zph$var[3, 3] * ((drawn %*% (bk %*% t(bk))) * drawn) %*% rep(1, 4))))

# Risks: Efron's baseline in the exponent; cumulative incidence from two cause-specific models, likewise
strat <- fit_of(Surv(time, event) ~ factor(true_code) + age + strata(stratum))
risk_of <- function(row) 1 - summary(survfit(strat, newdata = tied[row, ], stype = 2, ctype = 2), times = c(5, 10))$surv
out$risk <- sapply(1:5, risk_of)
cause <- function(k) coxph(Surv(time, status == k) ~ factor(true_code) + age, tied, control = tight)
hazard <- function(fit, row) { s <- survfit(fit, newdata = tied[row, ], stype = 2, ctype = 2); list(t = s$time, h = s$cumhaz) }
incidence <- function(row, until) {
  a <- hazard(cause(1), row); b <- hazard(cause(2), row)
  step <- diff(c(0, a$h)); before <- c(0, head(a$h, -1)) + c(0, head(b$h, -1))
  sum((exp(-before) * step)[a$t <= until])
}
out$incidence <- sapply(1:3, function(row) sapply(c(5, 10), function(t) incidence(row, t)))

rm_of <- function(data, tau) unname(summary(survfit(Surv(time, event) ~ 1, data), rmean = tau)$table[c("rmean", "se(rmean)")])
out$restricted_mean <- list(lung = rm_of(lung, 600), tied = rm_of(tied, 15))

judge <- function(risk, formula, data, times) lapply(times, function(t) {
  s <- Score(list(m = risk), formula = formula, data = data, times = t, metrics = c("auc", "brier"), summary = "ipa",
             cens.model = "km", se.fit = FALSE, null.model = TRUE, contrasts = FALSE)
  b <- as.data.frame(s$Brier$score)
  list(time = t, auc = as.data.frame(s$AUC$score)$AUC, brier = b[b$model == "m", "Brier"], ipa = b[b$model == "m", "IPA"])
})
out$horizons <- list(
  lung = judge(plogis((lung$age - 62) / 10 + .5 * lung$ph_ecog - 1), Surv(time, event) ~ 1, lung, c(180, 365.5)),
  tied = judge(plogis(tied$score_a * 3 - 1), Surv(time, event) ~ 1, tied, c(8, 14.5)),
  tied_competing = judge(plogis(tied$score_a * 3 - 1), Hist(time, status) ~ 1, tied, c(8, 14.5)),
  mgus2 = judge(plogis(mgus$mspike - 3), Hist(time, status) ~ 1, mgus, c(60, 120.5)))

versions <- c("survival", "riskRegression", "prodlim")
out$versions <- c(R = R.version.string, sapply(versions, function(p) as.character(packageVersion(p))))
write_json(out, "values/prognosis.json", digits = I(17), auto_unbox = TRUE, na = "null", pretty = FALSE)
