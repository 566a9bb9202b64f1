# Writes values/survival.json. Run from tests/reference: Rscript r/survival.R
suppressMessages({library(survival); library(jsonlite)})
lung <- read.csv("fixtures/lung.csv")
lung <- lung[!is.na(lung$ph_ecog), ]
tied <- read.csv("fixtures/tied.csv")
tied$event <- as.integer(tied$status == 1)
out <- list()

tight <- coxph.control(eps = 1e-15, iter.max = 50, toler.chol = 1e-16)
cox <- function(formula, data, ...) {
  fit <- coxph(formula, data, control = tight, ties = "efron", model = TRUE, ...)
  c_statistic <- concordance(fit)
  list(coef = unname(coef(fit)), se = unname(sqrt(diag(fit$var))), loglik = fit$loglik,
       var = unname(fit$var), c = unname(c_statistic$concordance), c_se = sqrt(unname(c_statistic$var)))
}
out$cox_lung <- cox(Surv(time, event) ~ age + sex + ph_ecog, lung)
out$cox_tied <- cox(Surv(time, event) ~ factor(true_code) + age, tied)
out$cox_tied_strata <- cox(Surv(time, event) ~ factor(true_code) + age + strata(stratum), tied)
weighted <- coxph(Surv(time, event) ~ factor(true_code) + age + strata(stratum), tied, weights = weight,
                  robust = FALSE, control = tight)
out$cox_tied_weights <- list(coef = unname(coef(weighted)), se = unname(sqrt(diag(weighted$var))), loglik = weighted$loglik)
null <- coxph(Surv(time, event) ~ strata(stratum), tied)
out$cox_null <- list(loglik = null$loglik)

one_c <- function(...) { k <- concordance(..., reverse = TRUE); list(c = unname(k$concordance), se = sqrt(unname(k$var))) }
out$c_category <- one_c(Surv(time, event) ~ true_code, tied)
out$c_age <- one_c(Surv(time, event) ~ age, tied)
strata_c <- concordance(Surv(time, event) ~ age + strata(stratum), tied, reverse = TRUE)
out$c_age_strata <- list(c = unname(strata_c$concordance), se = sqrt(unname(strata_c$var)))

km <- function(formula, data) {
  fit <- survfit0(survfit(formula, data, conf.type = "log-log"))
  list(time = fit$time, n_risk = fit$n.risk, n_event = fit$n.event, n_censor = fit$n.censor, surv = fit$surv,
       lower = fit$lower, upper = fit$upper)
}
out$km_lung <- km(Surv(time, event) ~ 1, lung)
out$km_tied <- km(Surv(time, event) ~ 1, tied)
edge <- data.frame(time = c(1, 2, 2, 3, 4, 5, 5), event = c(0, 0, 1, 1, 0, 1, 1))
out$km_edge <- km(Surv(time, event) ~ 1, edge)

times <- c(0, 2, 2.5, 4)
example <- summary(survfit(Surv(1:5, c(1, 0, 1, 0, 1)) ~ 1), times = times)
out$at_risk_example <- list(n_risk = example$n.risk, n_event = cumsum(example$n.event), n_censor = cumsum(example$n.censor))
years <- c(0, .25, .5, 1, 2)
at <- summary(survfit(Surv(time, event) ~ 1, lung), times = years * 365.25)
out$at_risk_lung <- list(n_risk = at$n.risk, n_event = cumsum(at$n.event), n_censor = cumsum(at$n.censor))

median_of <- function(time, event) unname(quantile(survfit(Surv(time, 1 - event) ~ 1), .5)$quantile)
out$reverse_median <- list(lung = median_of(lung$time, lung$event), tied = median_of(tied$time, tied$event),
                           flat = median_of(1:4, rep(0, 4)))

rank <- function(time, event, group, stratum) {
  test <- survdiff(Surv(time, event) ~ group + strata(stratum))
  o_e <- if (is.matrix(test$obs)) rowSums(test$obs - test$exp) else test$obs - test$exp
  w <- sort(unique(group))
  trend <- sum(w * o_e)^2 / c(w %*% test$var %*% w)
  pairs <- combn(w, 2)
  chi2 <- apply(pairs, 2, function(two) {
    keep <- group %in% two
    survdiff(Surv(time[keep], event[keep]) ~ group[keep] + strata(stratum[keep]))$chisq
  })
  list(overall = test$chisq, overall_p = pchisq(test$chisq, length(w) - 1, lower.tail = FALSE), trend = trend,
       pairs = unname(chi2), pairs_holm = p.adjust(pchisq(chi2, 1, lower.tail = FALSE), "holm"))
}
out$logrank_lung <- rank(lung$time, lung$event, lung$ph_ecog, rep(0, nrow(lung)))
out$logrank_tied <- rank(tied$time, tied$event, tied$true_code, rep(0, nrow(tied)))
out$logrank_tied_strata <- rank(tied$time, tied$event, tied$true_code, tied$stratum)

aj <- function(time, status) {
  fit <- survfit0(survfit(Surv(time, factor(status, 0:2)) ~ 1, conf.type = "log-log"))
  list(time = fit$time, incidence = unname(fit$pstate[, -1]), lower = unname(fit$lower[, -1]), upper = unname(fit$upper[, -1]))
}
out$aj_tied <- aj(tied$time, tied$status)
out$aj_edge <- aj(c(1, 1, 2, 3, 3, 4, 5), c(0, 1, 0, 2, 1, 1, 2))

exact <- lapply(c(0, 1, 7, 250), function(k) as.numeric(poisson.test(k)$conf.int))
out$garwood <- exact
out$garwood_90 <- as.numeric(poisson.test(7, conf.level = .9)$conf.int)
out$versions <- list(R = R.version.string, survival = as.character(packageVersion("survival")))
write_json(out, "values/survival.json", digits = I(17), auto_unbox = TRUE, na = "null", pretty = FALSE)
