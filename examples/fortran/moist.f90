! A column of moist air that rises: its temperature by a network that was written by cnn.to_c, and a network that learns.
!
!     moist predict      reads pressures from levels.txt, writes the temperature at each to column.txt
!     moist train        reads the parameters and new measurements, writes the loss of each step to losses.txt
program moist
    use, intrinsic :: iso_c_binding, only: c_double
    use cnn
    implicit none
    procedure(cnn_value_f64), bind(C, name="lapse") :: lapse
    procedure(cnn_value_p_f64), bind(C, name="learner") :: learner
    procedure(cnn_gradient_f64), bind(C, name="learner_gradient") :: learner_gradient
    character(len=16) :: what

    call get_command_argument(1, what)
    select case (what)
    case ("predict")
        call predict()
    case ("train")
        call train()
    case default
        error stop "usage: moist predict | train"
    end select

contains

    ! What the networks read, of temperature, K, and pressure, hPa; they give dT/dp in K for 10 hPa.
    pure function scaled(t, p) result(x)
        real(c_double), intent(in) :: t, p
        real(c_double) :: x(2)
        x = [(t - 260) / 30, (p - 600) / 300]
    end function

    ! dT/dp of saturated air, level by level from the ground: each needs the temperature of the one below. Then the
    ! network once more for the whole column, as a model of the atmosphere calls it.
    subroutine predict()
        integer, parameter :: levels = 100
        real(c_double) :: p(levels), t(levels), x(2, levels), y(1, levels)
        type(cnn_network_f64) :: net
        integer :: i, unit
        net = cnn_network_f64(2, 1, lapse)
        open (newunit=unit, file="levels.txt", status="old")
        read (unit, *) t(1), p
        close (unit)
        do i = 1, levels - 1
            x(:, i) = scaled(t(i), p(i))
            call net%predict(x(:, i:i), y(:, i:i))
            t(i + 1) = t(i) + y(1, i) * (p(i + 1) - p(i)) / 10
        end do
        x = reshape([(scaled(t(i), p(i)), i=1, levels)], [2, levels])
        call net%predict(x, y)
        open (newunit=unit, file="column.txt", status="replace")
        write (unit, "(3es25.16)") (p(i), t(i), y(1, i), i=1, levels)
        close (unit)
    end subroutine

    ! Adam (Kingma and Ba, 2015), all measurements in each step.
    subroutine train()
        integer :: parameters, rows, steps, i, unit
        real(c_double), allocatable :: x(:, :), y(:, :), g(:), m(:), s(:)
        real(c_double) :: loss
        type(cnn_trainable_f64) :: net
        open (newunit=unit, file="measured.txt", status="old")
        read (unit, *) parameters, rows, steps
        allocate (x(2, rows), y(1, rows), g(parameters), m(parameters), s(parameters))
        net = cnn_trainable_f64(2, 1, g, learner, learner_gradient)
        read (unit, *) net%p, x, y
        close (unit)
        m = 0
        s = 0
        open (newunit=unit, file="losses.txt", status="replace")
        do i = 1, steps
            call net%loss_and_grad(x, y, loss, g)
            write (unit, "(es25.16)") loss
            m = 0.9_c_double * m + 0.1_c_double * g
            s = 0.999_c_double * s + 0.001_c_double * g**2
            net%p = net%p - 0.001_c_double * m / (1 - 0.9_c_double**i) &
                / (sqrt(s / (1 - 0.999_c_double**i)) + 1e-8_c_double)
        end do
        close (unit)
    end subroutine

end program
