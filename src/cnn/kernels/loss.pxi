# Losses: value, gradient and second derivative of each row, in as few passes over the outputs as they need. Plain C;
# what Python gives is checked in targets.pxi.
#
# What they return is a weighted sum over the rows and no mean, so that parts of a batch add up; dividing by the sum of
# the weights (loss_weight) is the caller's, who puts it into `scale`. The mean over the columns of an elementwise loss
# is taken here. dy may be NULL: the loss alone.
#
# A row counts with the weight of its sample times that of its class. Rows whose class index is ignore_index, and rows
# of sample weight 0, have the loss 0 and the gradient 0, whatever their outputs are.
#
# Rows of y, dy, v and hv are padded to VL, those of targets are not. The padding of y is zero, or for the losses of
# classes anything; that of dy and hv is set to zero: the products rely on it.

cdef enum LossKind:
    LOSS_NONE
    LOSS_MSE
    LOSS_L1
    LOSS_HUBER
    LOSS_BCE
    LOSS_POISSON
    LOSS_QUANTILE
    LOSS_CROSS_ENTROPY
    LOSS_NLL

cdef struct LossSpec:
    LossKind kind
    bint labels             # targets are int64 class indices, one a row; if not, rows of reals
    bint mean               # if not, losses are summed
    double delta            # Huber: from where on it is linear
    double unit             # ... what it is divided by: 1, or SmoothL1Loss's beta
    double smoothing        # cross-entropy: label_smoothing
    double eps              # Poisson without log_input: added to the outputs
    bint log_input
    bint full
    int64_t ignore_index
    real* column            # NULL, or a number for each column, padded with zeros: class weight, pos_weight, quantile


cdef inline vf load_part(const real* row, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Elements j and following of a row of n that may end there; zero after its end."""
    return vf_load(row + j) if j + VL <= n else vf_load_first(row + j, n - j)


cdef inline vf cut_off(vf a, Py_ssize_t j, Py_ssize_t n, double rest) noexcept nogil:
    """Elements j and following of a row of n, `rest` after its end."""
    return a if j + VL <= n else vf_first(a, n - j, number(rest))


cdef inline vf column_part(const LossSpec* spec, Py_ssize_t j) noexcept nogil:
    """The columns' numbers from j on; without any, ones."""
    return vf_load(spec.column + j) if spec.column != NULL else number(1)


cdef inline double row_weight(const real* weight, Py_ssize_t i) noexcept nogil:
    if weight == NULL:
        return 1
    return weight[i]


# ---- elementwise losses: functions of an output y and a target t

cdef inline vf v_log(vf x) noexcept nogil:
    """log(x), lane by lane with the C library's: for losses that are not in a hurry."""
    cdef real[16] lane
    cdef int i
    vf_store(lane, x)
    for i in range(<int>VL):
        lane[i] = <real>log(lane[i])
    return vf_load(lane)


cdef inline vf sign_or_zero(vf d, vf above, vf below) noexcept nogil:
    """above for d > 0, below for d < 0; a zero or a NaN stays what it is."""
    return vf_select_gt(d, number(0), above, vf_select_gt(number(0), d, below, d))


cdef inline vf stirling(vf t) noexcept nogil:
    """log(t!) by Stirling's formula for t > 1, else 0, as PyTorch has it: t log t - t + log(2 pi t) / 2."""
    cdef vf near = vf_fma(t, v_log(t), number(0.5) * v_log(number(6.283185307179586) * t) - t)
    return vf_select_gt(t, number(1), near, number(0))


cdef inline vf element(LossKind kind, const LossSpec* spec, vf y, vf t, vf c, vf* slope) noexcept nogil:
    """The loss of an output and its derivative, the slope. c is the column's number.

        MSE        (y - t)**2
        L1         |y - t|
        Huber      d**2 / 2 for |d| <= delta, else delta (|d| - delta / 2), d = y - t; divided by `unit`.
                   With e = d cut off at +-delta this is e (d - e / 2).
        BCE        (1 - t) softplus(y) + c t softplus(-y), where softplus(y) = max(y, 0) + log(1 + exp(-|y|)): no sum
                   of terms that cancel, and no exponential that overflows
        Poisson    exp(y) - t y, or y - t log(y + eps); with `full` plus Stirling's log(t!)
        quantile   max(c d, (c - 1) d), d = t - y

    Where a derivative jumps (L1, quantile), it is 0.
    """
    cdef vf d, e, q, l
    if kind == LOSS_MSE:
        d = y - t
        slope[0] = d + d
        return d * d
    if kind == LOSS_L1:
        d = y - t
        slope[0] = sign_or_zero(d, number(1), number(-1))
        return vf_abs(d)
    if kind == LOSS_HUBER:
        d = y - t
        e = clamp(d, number(spec.delta))
        slope[0] = e / number(spec.unit)
        return slope[0] * vf_fma(number(-0.5), e, d)
    if kind == LOSS_QUANTILE:
        d = t - y
        slope[0] = sign_or_zero(d, -c, number(1) - c)
        return vf_max((c - number(1)) * d, c * d)
    if kind == LOSS_BCE:
        e = v_exp(minus_abs(y))
        q = number(1) / (number(1) + e)                     # sigmoid(|y|)
        l = v_log1p(e)
        d = number(1) - t
        t = c * t
        slope[0] = vf_select_gt(y, number(0), d * q - t * (e * q), d * (e * q) - t * q)
        return vf_fma(d, vf_max(number(0), y) + l, t * (vf_max(number(0), -y) + l))
    # Poisson
    if spec.log_input:
        e = v_exp(y)
        slope[0] = e - t
        l = e - t * y
    else:
        d = y + number(spec.eps)
        slope[0] = number(1) - t / d
        l = y - t * v_log(d)
    return l + stirling(t) if spec.full else l


cdef inline vf curvature(LossKind kind, const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    """The second derivative of `element`; that of the others is zero."""
    cdef vf e, q
    if kind == LOSS_MSE:
        return number(2)
    if kind == LOSS_HUBER:
        return vf_select_gt(vf_abs(y - t), number(spec.delta), number(0), number(1 / spec.unit))
    if kind == LOSS_BCE:
        e = v_exp(minus_abs(y))
        q = number(1) / (number(1) + e)
        return vf_fma(c, t, number(1) - t) * (e * q * q)
    if spec.log_input:
        return v_exp(y)
    q = number(1) / (y + number(spec.eps))
    return t * q * q


cdef inline double elementwise(LossKind kind, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                               Py_ssize_t y_row, const real* target, Py_ssize_t target_row, const real* weight,
                               double scale, real* dy, Py_ssize_t dy_row) noexcept nogil:
    """Weighted sum over the rows of the sum, or mean, of element(y, t) over the row; dy = scale weight slope (/ n).

    y, t (batch, n): 3 numbers moved for each element.
    """
    cdef bint clean = kind != LOSS_BCE and kind != LOSS_POISSON     # element(0, 0) is 0: so is the padding's
    cdef double total = 0, w, share = 1.0 / n if spec.mean else 1.0
    cdef vf factor, slope, value, sums
    cdef Py_ssize_t i, j, whole = n // VL * VL, lanes = smaller(n, VL)
    for i in range(batch):
        w = row_weight(weight, i)
        if w == 0:
            if dy != NULL:
                memset(dy, 0, round_up(n, VL) * sizeof(real))
        else:
            factor = vf_set(<real>(scale * w * share))
            sums = vf_set(0)
            for j from 0 <= j < whole by VL:
                sums = sums + element(kind, spec, vf_load(y + j), vf_load(target + j), column_part(spec, j), &slope)
                if dy != NULL:
                    vf_store(dy + j, factor * slope)
            if whole < n:
                value = element(kind, spec, vf_load(y + whole), vf_load_first(target + whole, n - whole),
                                column_part(spec, whole), &slope)
                sums = sums + (value if clean else vf_first(value, n - whole, number(0)))
                if dy != NULL:
                    slope = factor * slope
                    vf_store(dy + whole, slope if clean else vf_first(slope, n - whole, number(0)))
            total += w * vf_sum(sums, lanes)
        y += y_row
        target += target_row
        if dy != NULL:
            dy += dy_row
    return total / n if spec.mean else total


cdef inline void elementwise_hessian(LossKind kind, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n,
                                     const real* y, Py_ssize_t y_row, const real* target, Py_ssize_t target_row,
                                     const real* weight, double scale, const real* v, Py_ssize_t v_row, real* hv,
                                     Py_ssize_t hv_row) noexcept nogil:
    """hv = scale weight curvature(y, t) v (/ n)."""
    cdef double w
    cdef vf h
    cdef Py_ssize_t i, j
    for i in range(batch):
        w = row_weight(weight, i)
        if w == 0:
            memset(hv, 0, round_up(n, VL) * sizeof(real))
        else:
            w *= scale / n if spec.mean else scale
            for j from 0 <= j < n by VL:
                h = curvature(kind, spec, vf_load(y + j), load_part(target, j, n), column_part(spec, j))
                h = vf_set(<real>w) * h * vf_load(v + j)
                vf_store(hv + j, cut_off(h, j, n, 0))
        y += y_row
        target += target_row
        v += v_row
        hv += hv_row


# ---- losses of classes: functions of a row

cdef Py_ssize_t first_largest(Py_ssize_t n, const real* a) noexcept nogil:
    """The index of the first largest of n numbers; -1 if one of them is NaN."""
    cdef Py_ssize_t j, best = 0
    cdef bint nan = False
    for j in range(n):
        nan = nan or a[j] != a[j]
        if a[j] > a[best]:
            best = j
    return -1 if nan else best


cdef inline double label_share(const LossSpec* spec, int64_t label) noexcept nogil:
    """What of a row's weight falls to its label alone: the class weight, less label smoothing's part."""
    cdef double share = 1 - spec.smoothing
    if spec.column != NULL:
        share *= spec.column[label]
    return share


cdef inline vf class_shares(bint labels, const LossSpec* spec, const real* p, Py_ssize_t j,
                            Py_ssize_t n) noexcept nogil:
    """What falls to the classes j and following: class weight ((1 - smoothing) p + smoothing / n).

    With labels without label_share, which comes on top. There are column numbers wherever there is smoothing.
    """
    cdef vf a = number(0) if labels else load_part(p, j, n)
    if spec.column != NULL:
        a = vf_load(spec.column + j) * vf_fma(number(1 - spec.smoothing), a, number(spec.smoothing / n))
    return a


cdef inline vf logits(const real* z, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Logits j and following of a row; -inf after its end, where the exponential is zero."""
    return cut_off(vf_load(z + j), j, n, -INFINITY)


cdef inline real largest_logit(const real* z, Py_ssize_t n) noexcept nogil:
    cdef vf top = logits(z, 0, n)
    cdef Py_ssize_t j
    for j from VL <= j < n by VL:
        top = vf_max(top, logits(z, j, n))
    return vf_largest(top)


cdef inline double cross_entropy(bint labels, bint dense, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n,
                                 const real* z, Py_ssize_t z_row, const char* target, Py_ssize_t target_bytes,
                                 const real* weight, double scale, real* dz, Py_ssize_t dz_row,
                                 Py_ssize_t* correct) noexcept nogil:
    """Cross-entropy of softmax(z) with shares a of the classes: sum of a_j (log(sum of exp(z - max)) + max - z_j);
    dz = scale weight (A softmax(z) - a), where A is the sum of a.

    a is class weight x ((1 - smoothing) p + smoothing / n); p is 1 for the label, or the row of class probabilities.
    dense: it has more than the label's share. Counts the rows whose first largest logit is the label's (the most
    probable class's). z (batch, n): one exponential, two passes over z.
    """
    cdef Py_ssize_t i, j
    cdef int64_t label = 0
    cdef vf a, e, x, sums, mass, cross
    cdef real largest
    cdef double w, share = 0, total_share, row_loss, exp_sum, total = 0
    cdef const real* p = <const real*>target
    cdef bint ignored = False
    for i in range(batch):
        w = row_weight(weight, i)
        if labels:
            label = (<const int64_t*>target)[0]
            ignored = label == spec.ignore_index
        if w == 0 or ignored:
            if dz != NULL:
                memset(dz, 0, round_up(n, VL) * sizeof(real))
            if not ignored:
                correct[0] += first_largest(n, z) == (label if labels else first_largest(n, p))
        else:
            largest = largest_logit(z, n)
            sums = mass = cross = vf_set(0)
            for j from 0 <= j < n by VL:
                x = logits(z, j, n) - vf_set(largest)
                e = v_exp(x)
                sums = sums + e
                if dz != NULL:
                    vf_store(dz + j, e)
                if dense:
                    a = class_shares(labels, spec, p, j, n)
                    mass = mass + a
                    cross = cross - vf_select_gt(a, number(0), a * x, number(0))    # 0 x inf: no share, no loss
            exp_sum = vf_sum(sums, VL)
            total_share = row_loss = 0
            if dense:
                total_share = vf_sum(mass, VL)
                row_loss = vf_sum(cross, VL)
            if labels:
                share = label_share(spec, label)
                total_share += share
                if share != 0:
                    row_loss += share * (<double>largest - <double>z[label])
                if z[label] == largest:
                    for j in range(label):
                        if z[j] == largest:
                            break
                    else:
                        correct[0] += 1
            else:
                correct[0] += first_largest(n, z) == first_largest(n, p)
            total += w * (row_loss + total_share * log(exp_sum))
            if dz != NULL:
                w *= scale
                e = vf_set(<real>(w * total_share / exp_sum))
                for j from 0 <= j < n by VL:
                    x = e * vf_load(dz + j)
                    if dense:
                        x = x - vf_set(<real>w) * class_shares(labels, spec, p, j, n)
                    vf_store(dz + j, x)
                if labels:
                    dz[label] -= <real>(w * share)
        z += z_row
        target += target_bytes
        p = <const real*>target
        if dz != NULL:
            dz += dz_row
    return total


cdef void cross_entropy_hessian(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* z, Py_ssize_t z_row,
                                const char* target, Py_ssize_t target_bytes, const real* weight, double scale,
                                const real* v, Py_ssize_t v_row, real* hv, Py_ssize_t hv_row) noexcept nogil:
    """hv = scale weight A p (v - p . v) with p = softmax(z); A as in cross_entropy."""
    cdef Py_ssize_t i, j
    cdef bint dense = not spec.labels or spec.smoothing > 0
    cdef int64_t label = 0
    cdef vf e, sums, mass, dot
    cdef real largest
    cdef double w, exp_sum, average
    for i in range(batch):
        w = row_weight(weight, i)
        if spec.labels:
            label = (<const int64_t*>target)[0]
        if w == 0 or spec.labels and label == spec.ignore_index:
            memset(hv, 0, round_up(n, VL) * sizeof(real))
        else:
            largest = largest_logit(z, n)
            sums = mass = dot = vf_set(0)
            for j from 0 <= j < n by VL:
                e = v_exp(logits(z, j, n) - vf_set(largest))
                vf_store(hv + j, e)
                sums = sums + e
                dot = vf_fma(e, cut_off(vf_load(v + j), j, n, 0), dot)
                if dense:
                    mass = mass + class_shares(spec.labels, spec, <const real*>target, j, n)
            exp_sum = vf_sum(sums, VL)
            average = vf_sum(dot, VL) / exp_sum
            w *= scale / exp_sum * (vf_sum(mass, VL) + (label_share(spec, label) if spec.labels else 0))
            for j from 0 <= j < n by VL:
                e = vf_set(<real>w) * vf_load(hv + j) * (vf_load(v + j) - vf_set(<real>average))
                vf_store(hv + j, cut_off(e, j, n, 0))
        z += z_row
        target += target_bytes
        v += v_row
        hv += hv_row


cdef double negative_log_likelihood(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                                    Py_ssize_t y_row, const char* target, Py_ssize_t target_bytes, const real* weight,
                                    double scale, real* dy, Py_ssize_t dy_row, Py_ssize_t* correct) noexcept nogil:
    """Sum of -class weight x y[label], y being log-probabilities (batch, n); NaN if any of a row's outputs is."""
    cdef Py_ssize_t i, best
    cdef int64_t label
    cdef double w, total = 0
    for i in range(batch):
        label = (<const int64_t*>target)[0]
        w = row_weight(weight, i)
        if dy != NULL:
            memset(dy, 0, round_up(n, VL) * sizeof(real))
        if label != spec.ignore_index:
            best = first_largest(n, y)
            correct[0] += best == label
            w *= label_share(spec, label)
            if w != 0:
                total -= w * (y[label] if best >= 0 else <double>NAN)
                if dy != NULL:
                    dy[label] = <real>(-scale * w)
        y += y_row
        target += target_bytes
        if dy != NULL:
            dy += dy_row
    return total


# ---- whichever it is

cdef double loss_rows(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                      const char* target, Py_ssize_t target_bytes, const real* weight, double scale, real* dy,
                      Py_ssize_t dy_row, Py_ssize_t* correct) noexcept nogil:
    """Weighted sum of the rows' losses; dy = scale x weight x gradient. Adds the rows classified right to correct.

    y (batch, n), target of target_bytes a row, weight (batch,) or NULL, dy (batch, n) or NULL.
    """
    cdef const real* t = <const real*>target
    cdef Py_ssize_t t_row = target_bytes // <Py_ssize_t>sizeof(real)
    if spec.kind == LOSS_MSE:
        return elementwise(LOSS_MSE, spec, batch, n, y, y_row, t, t_row, weight, scale, dy, dy_row)
    if spec.kind == LOSS_CROSS_ENTROPY:
        if not spec.labels:
            return cross_entropy(False, True, spec, batch, n, y, y_row, target, target_bytes, weight, scale, dy, dy_row,
                                 correct)
        if spec.smoothing > 0:
            return cross_entropy(True, True, spec, batch, n, y, y_row, target, target_bytes, weight, scale, dy, dy_row,
                                 correct)
        return cross_entropy(True, False, spec, batch, n, y, y_row, target, target_bytes, weight, scale, dy, dy_row,
                             correct)
    if spec.kind == LOSS_NLL:
        return negative_log_likelihood(spec, batch, n, y, y_row, target, target_bytes, weight, scale, dy, dy_row,
                                       correct)
    if spec.kind == LOSS_L1:
        return elementwise(LOSS_L1, spec, batch, n, y, y_row, t, t_row, weight, scale, dy, dy_row)
    if spec.kind == LOSS_HUBER:
        return elementwise(LOSS_HUBER, spec, batch, n, y, y_row, t, t_row, weight, scale, dy, dy_row)
    if spec.kind == LOSS_BCE:
        return elementwise(LOSS_BCE, spec, batch, n, y, y_row, t, t_row, weight, scale, dy, dy_row)
    if spec.kind == LOSS_QUANTILE:
        return elementwise(LOSS_QUANTILE, spec, batch, n, y, y_row, t, t_row, weight, scale, dy, dy_row)
    return elementwise(LOSS_POISSON, spec, batch, n, y, y_row, t, t_row, weight, scale, dy, dy_row)


cdef void loss_hessian_rows(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                            const char* target, Py_ssize_t target_bytes, const real* weight, double scale,
                            const real* v, Py_ssize_t v_row, real* hv, Py_ssize_t hv_row) noexcept nogil:
    """hv = scale x weight x (second derivative of the row's loss in y) v. Zero where that is, almost everywhere."""
    cdef const real* t = <const real*>target
    cdef Py_ssize_t i, t_row = target_bytes // <Py_ssize_t>sizeof(real)
    if spec.kind == LOSS_CROSS_ENTROPY:
        cross_entropy_hessian(spec, batch, n, y, y_row, target, target_bytes, weight, scale, v, v_row, hv, hv_row)
    elif spec.kind == LOSS_MSE:
        elementwise_hessian(LOSS_MSE, spec, batch, n, y, y_row, t, t_row, weight, scale, v, v_row, hv, hv_row)
    elif spec.kind == LOSS_HUBER:
        elementwise_hessian(LOSS_HUBER, spec, batch, n, y, y_row, t, t_row, weight, scale, v, v_row, hv, hv_row)
    elif spec.kind == LOSS_BCE:
        elementwise_hessian(LOSS_BCE, spec, batch, n, y, y_row, t, t_row, weight, scale, v, v_row, hv, hv_row)
    elif spec.kind == LOSS_POISSON:
        elementwise_hessian(LOSS_POISSON, spec, batch, n, y, y_row, t, t_row, weight, scale, v, v_row, hv, hv_row)
    else:
        for i in range(batch):
            memset(hv + i * hv_row, 0, round_up(n, VL) * sizeof(real))


cdef double loss_weight(const LossSpec* spec, Py_ssize_t batch, const char* target, Py_ssize_t target_bytes,
                        const real* weight) noexcept nogil:
    """The sum of the rows' weights, which a mean is divided by: sample weight x class weight of the row's label.

    As in PyTorch, class weights do not count where the targets are class probabilities, nor does label smoothing.
    """
    cdef double total = 0, w
    cdef int64_t label
    cdef Py_ssize_t i
    if weight == NULL and not spec.labels:
        return <double>batch
    for i in range(batch):
        w = row_weight(weight, i)
        if spec.labels:
            label = (<const int64_t*>(target + i * target_bytes))[0]
            if label == spec.ignore_index:
                w = 0
            elif spec.column != NULL:
                w *= spec.column[label]
        total += w
    return total


cdef inline double loss_scale(const LossSpec* spec, double weight) noexcept nogil:
    """What a sum of losses over rows of this loss_weight is multiplied by; 0 where the mean is not defined."""
    if not spec.mean:
        return 1
    return 1 / weight if weight > 0 else 0
